"""Fault tests of sharding: a corpus with everything planted, the command, the oracles, and what does the damage."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.base.digests import sha256_hex
from pipeline.base.failpoints import VARIABLE
from pipeline.base.store import open_store
from tests.support.command import start
from tests.support.pictures import encoded, noise, png, png_that_claims

SEED = int(os.environ.get("VITPIPE_TEST_SEED", "0"))
NAME = "photographs"  # of the dataset
FOLDERS = ("flowers/dahlia", "places/china/temple", "places/china/roof of the temple")
REJECTED = {  # what is planted, and the reason that must stand in rejects.parquet
    "flowers/dahlia/cut.jpg": "truncated",
    "flowers/dahlia/empty.png": "empty",
    "places/china/temple/page.jpg": "not-an-image",
    "places/china/temple/bomb.png": "too-large",
}
# So slow to write that a kill falls into the middle of a shard: every image is resized and encoded anew.
SLOW = ("max_samples=40", "resize.mode=short", "resize.size=256", "resize.enlarge=true", "resize.format=webp")
_MARK = "VITPIPE_TEST_MARK"
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # how Ray Jobs hand a driver the environment of its workers
_SECONDS = 90  # guards against hanging


def draw(words: str) -> random.Random:
    """The generator of a test's random choices; its seed is printed with a failure."""
    print(f"VITPIPE_TEST_SEED={SEED} ({words})")
    return random.Random(f"{SEED} {words}")


def make_photographs(folder: Path, count: int, sides: tuple[int, int] = (48, 160)) -> Path:
    """*count* pieces of two real photographs, as JPEG and PNG, in nested classes; and the files of REJECTED."""
    rng = random.Random(0)
    whole = [Image.fromarray(picture) for picture in load_sample_images().images]
    for number in range(count):
        width, height = rng.randint(*sides), rng.randint(*sides)
        picture = whole[number % 2]
        left, top = rng.randrange(picture.width - width), rng.randrange(picture.height - height)
        piece = picture.crop((left, top, left + width, top + height))
        kind = "PNG" if number % 5 == 0 else "JPEG"
        put(folder, f"{FOLDERS[number % len(FOLDERS)]}/{number:04d}.{kind.lower()}", encoded(piece, kind))
    plant_rejected(folder)
    return folder


def plant_rejected(folder: Path) -> None:
    """The files of REJECTED."""
    whole = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    bodies = (whole[: len(whole) // 2], b"", b"<!doctype html><title>404</title>", png_that_claims(70_000, 70_000))
    for origin, body in zip(REJECTED, bodies, strict=True):
        put(folder, origin, body)


def plant_duplicates(folder: Path) -> dict[str, tuple[str, str]]:
    """Copies of images of *folder*; by the origin that must be left out: the reason, and the origin it is equal to."""
    first = "flowers/dahlia/0000.png"
    with Image.open(folder / first) as image:
        same_pixels = encoded(image.convert("RGB"), "PNG", compress_level=0)
    second = "places/china/roof of the temple/0002.jpeg"
    put(folder, "flowers/dahlia/zz-copy.png", (folder / first).read_bytes())
    put(folder, "places/china/temple/zz-other-class.png", (folder / first).read_bytes())
    put(folder, "flowers/dahlia/zz-other-file.png", same_pixels)
    put(folder, "places/china/roof of the temple/zz-copy.jpeg", (folder / second).read_bytes())
    return {
        "flowers/dahlia/zz-copy.png": ("same-file", first),
        "places/china/temple/zz-other-class.png": ("same-file", first),
        "flowers/dahlia/zz-other-file.png": ("same-pixels", first),
        "places/china/roof of the temple/zz-copy.jpeg": ("same-file", second),
    }


def put(folder: Path, origin: str, data: bytes) -> None:
    """A file of a corpus, with the folders above it."""
    (folder / origin).parent.mkdir(parents=True, exist_ok=True)
    (folder / origin).write_bytes(data)


def random_png(seed: int) -> bytes:
    """A small image that no other seed gives."""
    return png(noise(40, 40, seed))


@dataclass(frozen=True)
class Sharding:
    """``vitpipe shard`` of one corpus with fixed overrides, on the cluster at *address* or on one of its own.

    ``worker_env`` is set for the workers alone, ``env`` for the command. Every process of a command carries a mark, as
    do the workers when they have an environment of their own.
    """

    corpus: Path
    overrides: tuple[str, ...] = ("max_samples=30",)
    address: str = ""
    name: str = NAME
    env: dict[str, str] = field(default_factory=dict)
    worker_env: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def with_worker_env(self, **values: str) -> Sharding:
        """The same, with *values* in the environment of the workers."""
        return replace(self, worker_env=self.worker_env | values)

    def failing(self, point: str, *, in_worker: bool = False) -> Sharding:
        """The same, dying at *point*."""
        if in_worker:
            return self.with_worker_env(**{VARIABLE: point})
        return replace(self, env=self.env | {VARIABLE: point})

    def start(self, workspace: str | Path, *more: str, **options: Any) -> subprocess.Popen[str]:
        """Start the command."""
        where = ["--address", self.address] if self.address else []
        env = {_MARK: self.mark} | self.env
        if self.worker_env:
            worker_env = self.worker_env | {_MARK: self.mark}
            env |= {_JOB_CONFIG: json.dumps({"runtime_env": {"env_vars": worker_env}})}
        arguments = ("shard", self.corpus, "--workspace", workspace, "--name", self.name, *where)
        return start(*arguments, *self.overrides, *more, env=env, **options)

    def run(self, workspace: str | Path, *more: str, timeout: float = _SECONDS, **options: Any) -> Ended:
        """Run the command to its end."""
        return wait(self.start(workspace, *more, **options), timeout)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said on standard error, without the lines of its progress."""

    code: int
    told: str


def wait(process: subprocess.Popen[str], timeout: float = _SECONDS) -> Ended:
    """The end of a command that was started."""
    try:
        _, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"{process.args} did not end:\n{process.communicate()[1]}") from None
    return Ended(process.returncode, err)


def content(workspace: str | Path) -> dict[str, str]:
    """Digest by name of every file or object of *workspace*, hidden ones too; folders do not count."""
    if isinstance(workspace, str):
        store = open_store(workspace)
        return {info.key: sha256_hex(store.read(info.key)) for info in store.list()}
    files = (path for path in workspace.rglob("*") if path.is_file())
    return {path.relative_to(workspace).as_posix(): sha256_hex(path.read_bytes()) for path in files}


def one_line(told: str) -> str:
    """The one line in which a command said what was wrong."""
    lines = [line for line in told.splitlines() if line.startswith("vitpipe: ")]
    assert len(lines) == 1, told
    assert "Traceback" not in told, told
    return lines[0]


def assert_no_process_left(*marks: str) -> None:
    """No process carries one of the *marks* any more; what is ending may take a while to end."""
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in _marked(marks)], timeout=60)
    assert not alive, alive
    assert not _marked(marks)


def _marked(marks: tuple[str, ...]) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) in marks and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below *pid*."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def writers(pid: int, workspace: Path) -> list[int]:
    """The processes below *pid* that have a file of *workspace* open for writing: shard tasks, in the middle of one."""
    return [process.pid for process in descendants(pid) if _writes_below(process.pid, workspace)]


def decoders(pid: int) -> list[int]:
    """The sandboxes' children below *pid* that are ready: they have silenced their output."""
    found = []
    for process in descendants(pid):
        with suppress(psutil.Error, OSError):
            is_child = "pipeline.images.sandbox_worker" in process.cmdline()
            if is_child and os.readlink(f"/proc/{process.pid}/fd/2") == os.devnull:
                found.append(process.pid)
    return found


def _writes_below(pid: int, workspace: Path) -> bool:
    with suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{number}").startswith(f"{workspace}/"):
                    return True
    return False


def wait_until(true: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """What *true* returns once that is true. Fails when the *process* ends before, or after a long time."""
    deadline = time.monotonic() + _SECONDS
    while not (found := true()):
        assert process is None or process.poll() is None, f"it ended before: {process and process.communicate()[1]}"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)
    return found


@contextmanager
def killing(find: Callable[[], list[int]], rng: random.Random, wanted: int, seconds: float) -> Iterator[list[int]]:
    """While the block runs, kill *wanted* of the processes that *find* finds, each at a moment within *seconds*.

    Gives the list of those that were killed so far.
    """
    ended, killed = threading.Event(), []

    def kill() -> None:
        while len(killed) < wanted and not ended.is_set():
            if not find():
                ended.wait(0.002)
                continue
            ended.wait(rng.uniform(0, seconds))
            found = find()
            if found:
                with suppress(ProcessLookupError):
                    os.kill(pid := rng.choice(found), signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()
