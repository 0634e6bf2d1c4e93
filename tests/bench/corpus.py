"""A folder of ImageNet-like files for the benches that shard: nested class folders, made once for a run."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

from tests.bench.pictures import imagenet_like

_CLASSES = 100
_FILES_AT_ONCE = 500


def make(folder: Path, count: int) -> list[Path]:
    """*count* files, ``folder/group-G/class-CC/NNNNNNNN.JPEG``, written by all cores; in the order of their numbers."""
    starts = range(0, count, _FILES_AT_ONCE)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.starmap(_write, [(folder, start, min(count, start + _FILES_AT_ONCE)) for start in starts])
    return [_place(folder, number) for number in range(count)]


def _write(folder: Path, start: int, stop: int) -> None:
    for number, data in enumerate(imagenet_like(stop - start, seed=start), start):
        path = _place(folder, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _place(folder: Path, number: int) -> Path:
    label = number % _CLASSES
    return folder / f"group-{label // 10}" / f"class-{label:02d}" / f"{number:08d}.JPEG"
