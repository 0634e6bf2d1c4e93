"""Resident memory of sharding at its peak, as the kernel has counted it, against what is allowed.

A task is a Ray worker that reads and writes, and its sandboxed decoder. Of each the largest resident set is told, and
of both together the proportional set seen twice a second, in which a page that several processes share (libraries,
Ray's object store) counts in parts. The driver is a process of its own that plans a listing of made-up entries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from jobs.base.ray_session import connected
from pipeline.base.units import format_bytes
from tests.bench import corpus
from tests.bench.peak import peak_bytes
from tests.bench.row import Row
from tests.bench.sharding import EVEN, shard_folder

_ALLOWED_TASK, _ALLOWED_DRIVER, _ALLOWED_SECONDS = 300_000_000, 500_000_000, 15.0
_IMAGES = 14_000  # of about 77 kB: one shard of 1 GB
_SIZES = {"100 MB": 100_000_000, "1 GB": 1_100_000_000}
_TICK_SECONDS = 0.5
_BOTH = "worker and decoder together, shared pages in parts"


def measure() -> list[Row]:
    """Tasks of two sizes, each on a cluster of its own, since a worker that was used before remembers its peak."""
    os.environ.update(EVEN)
    rows = []
    with tempfile.TemporaryDirectory(prefix="vitpipe-bench-") as name:
        folder = Path(name) / "corpus"
        corpus.make(folder, _IMAGES)
        for told, num_bytes in _SIZES.items():
            settings = {"max_bytes": num_bytes, "max_samples": 10**6}
            with connected(None), _watching() as peaks:
                _, card = shard_folder(folder, Path(name) / told, settings)
            size = format_bytes(card.num_bytes // card.num_shards)
            for part, peak in peaks.items():
                rows.append(_row(f"memory of a task, shards of {size}: {part}", peak, _ALLOWED_TASK))
    return [*rows, *_driver()]


def _row(what: str, num_bytes: int, allowed: int) -> Row:
    ratio = allowed / num_bytes
    return Row(what, f"{num_bytes / 1e6:.0f} MB", f"{allowed / 1e6:.0f} MB allowed", ratio, least=1.0)


@contextmanager
def _watching() -> Iterator[dict[str, int]]:
    """The largest of all workers, of all decoders (RSS at its peak) and of all pairs of them (PSS, as seen)."""
    peaks: dict[str, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_TICK_SECONDS):
            _look(peaks)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        _look(peaks)  # idle workers and decoders are still there, and know their own peak
        ended.set()
        watcher.join()


def _look(peaks: dict[str, int]) -> None:
    for decoder in psutil.Process().children(recursive=True):
        try:
            if "pipeline.images.sandbox_worker" not in decoder.cmdline():
                continue
            worker = decoder.parent()
            if worker is not None:
                both = worker.memory_full_info().pss + decoder.memory_full_info().pss
                seen = {"worker": peak_bytes(worker.pid), "decoder": peak_bytes(decoder.pid), _BOTH: both}
                peaks.update({name: max(peaks.get(name, 0), value) for name, value in seen.items()})
        except (psutil.Error, OSError):
            continue


def _driver() -> list[Row]:
    command = [sys.executable, "-m", "tests.bench.driver"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    facts = json.loads(output.splitlines()[-1])
    seconds = facts["seconds"]
    entries = f"{facts['entries']:,} entries, {facts['shards']:,} shards"
    allowed = f"{_ALLOWED_SECONDS:.0f} s allowed"
    return [
        _row(f"memory of the driver, {entries}", facts["peak_bytes"], _ALLOWED_DRIVER),
        Row(f"planning {entries}", f"{seconds:.1f} s", allowed, _ALLOWED_SECONDS / seconds, least=1.0),
    ]
