"""scikit-learn's 1,797 handwritten digits (UCI, Alpaydin and Kaynak), as a corpus for transfer: 8x8, ten classes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from jobs.corpora.layout import TEST_FILE, TRAIN_FILE, encode_png, write_split

CLASS_NAMES = tuple(str(digit) for digit in range(10))
NUM_TEST_PER_CLASS = 60  # of 174 to 183


def write_digits(folder: Path) -> None:
    """Write 1,197 training and 600 test images below *folder*, as parquet in the layout of the Hugging Face hub."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second to import

    bunch = load_digits()
    pixels = (bunch.images * (255 / 16)).round().astype(np.uint8)
    labels = [int(label) for label in bunch.target]
    held_out = held_out_rows(labels)
    for name, rows in (
        (TRAIN_FILE, [row for row in range(len(labels)) if row not in held_out]),
        (TEST_FILE, sorted(held_out)),
    ):
        images = [encode_png(pixels[row], compress_level=0) for row in rows]
        write_split(folder / name, images, [labels[row] for row in rows], CLASS_NAMES)


def held_out_rows(labels: list[int]) -> set[int]:
    """The rows held out for testing: in each class, those whose number has the smallest sha256."""
    chosen: set[int] = set()
    for label in sorted(set(labels)):
        rows = [row for row, other in enumerate(labels) if other == label]
        rows.sort(key=lambda row: hashlib.sha256(f"digits/{row}".encode()).digest())
        chosen.update(rows[:NUM_TEST_PER_CLASS])
    return chosen
