"""The small corpora: what is in them never changes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.corpus.embedded import fashion_mnist
from pipeline.corpus.embedded.corpora import CLASS_NAMES as DIGIT_NAMES
from pipeline.corpus.embedded.corpora import TEST_FILE, TRAIN_FILE, write_digits
from pipeline.corpus.embedded.make_fashion_mnist import CLASS_NAMES, make

EMBEDDED = Path(fashion_mnist.__file__).parent


def rows_of(path: Path) -> list[dict[str, Any]]:
    """All rows of a parquet file."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def pixels_of(rows: list[dict[str, Any]]) -> np.ndarray:
    """All images of a split, (N, H, W)."""
    return np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows])


def declared(path: Path) -> dict[str, Any]:
    """What the schema's metadata tells the Hugging Face hub."""
    features: dict[str, Any] = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    return features


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, written once."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "num_images", "least", "most", "first_png", "all_pixels"),
    [
        (TRAIN_FILE, 10_000, 942, 1_027, "cf87ce49cf891158", "2929ae1c7b89e0ee"),
        (TEST_FILE, 2_000, 188, 219, "e1239e8e08d17e8b", "09bbac78738f0229"),
    ],
)
def test_fashion_mnist(file: str, num_images: int, least: int, most: int, first_png: str, all_pixels: str) -> None:
    rows = rows_of(EMBEDDED / file)
    pixels = pixels_of(rows)
    assert pixels.shape == (num_images, 28, 28)
    assert pixels.dtype == np.uint8
    assert hashlib.sha256(rows[0]["image"]["bytes"]).hexdigest().startswith(first_png)
    assert hashlib.sha256(pixels.tobytes()).hexdigest().startswith(all_pixels)
    counts = Counter(row["label"] for row in rows)
    assert set(counts) == set(range(10))
    assert (min(counts.values()), max(counts.values())) == (least, most)
    assert rows[7]["image"]["path"] == f"{file.partition('-')[0]}-00007.png"


def test_fashion_mnist_declares_its_classes_and_stays_small() -> None:
    for file in (TRAIN_FILE, TEST_FILE):
        assert declared(EMBEDDED / file) == {
            "image": {"_type": "Image"},
            "label": {"names": list(CLASS_NAMES), "_type": "ClassLabel"},
        }
    assert sum((EMBEDDED / file).stat().st_size for file in (TRAIN_FILE, TEST_FILE)) <= 8_000_000
    assert "Zalando SE" in (EMBEDDED / "LICENSE").read_text()


def test_the_script_reads_idx_files_and_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    pixels = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    for name in ("train", "t10k"):
        images = b"\0\0\x08\x03" + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes()
        labels = b"\0\0\x08\x01" + np.array([3], ">u4").tobytes() + bytes([9, 0, 3])
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    for folder in ("one", "two"):
        make(tmp_path, tmp_path / folder)
    rows = rows_of(tmp_path / "one" / TRAIN_FILE)
    assert (pixels_of(rows) == pixels).all()
    assert [row["label"] for row in rows] == [9, 0, 3]
    for file in (TRAIN_FILE, TEST_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("file", "num_images", "first_png", "all_pixels"),
    [
        (TRAIN_FILE, 1_197, "09bd5e9a307bff83", "23b0842638139954"),
        (TEST_FILE, 600, "d79b74a84660260f", "bb9bcbaf2be84b38"),
    ],
)
def test_digits(digits: Path, file: str, num_images: int, first_png: str, all_pixels: str) -> None:
    rows = rows_of(digits / file)
    pixels = pixels_of(rows)
    assert pixels.shape == (num_images, 8, 8)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert hashlib.sha256(rows[0]["image"]["bytes"]).hexdigest().startswith(first_png)
    assert hashlib.sha256(pixels.tobytes()).hexdigest().startswith(all_pixels)
    assert declared(digits / file)["label"]["names"] == list(DIGIT_NAMES)


def test_digits_are_stratified_and_written_alike_twice(digits: Path, tmp_path: Path) -> None:
    test_labels = Counter(row["label"] for row in rows_of(digits / TEST_FILE))
    assert test_labels == dict.fromkeys(range(10), 60)
    train_labels = Counter(row["label"] for row in rows_of(digits / TRAIN_FILE))
    assert min(train_labels.values()) == 114
    assert max(train_labels.values()) == 123
    write_digits(tmp_path)
    for file in (TRAIN_FILE, TEST_FILE):
        assert (tmp_path / file).read_bytes() == (digits / file).read_bytes()


def test_no_test_digit_is_a_training_digit(digits: Path) -> None:
    seen = {row["image"]["bytes"] for row in rows_of(digits / TRAIN_FILE)}
    assert not [row for row in rows_of(digits / TEST_FILE) if row["image"]["bytes"] in seen]
