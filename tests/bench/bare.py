"""What a good engineer writes in ten lines: one process a core, each reads, works on and tars its share of the files.

No second process that decodes, no index, no plan, no order, no fsync: what our sharding is compared with.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import tarfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TypeAlias

from pipeline.images.check import Reencode, reencode
from pipeline.images.decode import decode
from tests.bench.row import Spent

_TAR_BYTES = 256_000_000
Loop = Callable[[bytes], bytes]
_Ends: TypeAlias = "multiprocessing.Queue[tuple[float, float]]"


def decode_and_digest(data: bytes) -> bytes:
    """The bytes as they are, once they were decoded and digested."""
    decode(data)
    hashlib.sha256(data).hexdigest()
    return data


def decode_and_resize(data: bytes) -> bytes:
    """A JPEG whose short side is 256."""
    return reencode(decode(data)[0], Reencode(mode="short", size=256))[0]


def run(loop: Loop, files: list[Path], folder: Path, num_processes: int) -> Spent:
    """From the first file to the last tar, with the processes up and warm."""
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    barrier, ends = context.Barrier(num_processes + 1), context.Queue()
    shares = [files[number::num_processes] for number in range(num_processes)]
    processes = [
        context.Process(target=_run, args=(loop, share, folder / str(number), barrier, ends))
        for number, share in enumerate(shares)
    ]
    for process in processes:
        process.start()
    barrier.wait(120)
    started = time.monotonic()
    ended, cpu_seconds = zip(*(ends.get(timeout=3600) for _ in processes), strict=True)
    for process in processes:
        process.join()
    return Spent(max(ended) - started, sum(cpu_seconds))


def _run(loop: Loop, files: list[Path], folder: Path, barrier: Barrier, ends: _Ends) -> None:
    folder.mkdir()
    loop(files[0].read_bytes())
    barrier.wait(120)
    left, before = iter(files), time.process_time()
    number = 0
    while _write_tar(loop, left, folder / f"{number:05d}.tar"):
        number += 1
    ends.put((time.monotonic(), time.process_time() - before))  # the first clock is one for all processes


def _write_tar(loop: Loop, files: object, path: Path) -> bool:
    """Take from *files* until the tar is full; False when they are at their end."""
    num_bytes = 0
    with tarfile.open(path, "w") as tar:
        for file in files:  # type: ignore[attr-defined]
            data = loop(file.read_bytes())
            member = tarfile.TarInfo(file.name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            num_bytes += len(data)
            if num_bytes >= _TAR_BYTES:
                return True
    return False
