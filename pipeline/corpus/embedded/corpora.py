"""Small real corpora that need no network: ``embedded://NAME/SPLIT``, as parquet in the layout of the Hugging Face hub.

fashion-mnist: 12,000 images, 28x28, ten classes; fashion_mnist/ has them. digits: scikit-learn's 1,797 handwritten
digits (UCI, Alpaydin and Kaynak), 8x8, ten classes, written when they are first named.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.base.errors import InputError
from pipeline.base.store.protocol import Store

TRAIN_FILE = "train-00000-of-00001.parquet"
TEST_FILE = "test-00000-of-00001.parquet"
CLASS_NAMES = tuple(str(digit) for digit in range(10))  # of digits
_NUM_TEST_PER_CLASS = 60  # of digits, which have 174 to 183 of each class
_SCHEME = "embedded://"
_NAMES = ("fashion-mnist", "digits")
_FILES = {"train": TRAIN_FILE, "test": TEST_FILE}


def resolve_source(source: str, workspace: Store) -> str:
    """*source*, or for an embedded corpus the URI of its copy below ``corpora/`` of the workspace."""
    if not source.startswith(_SCHEME):
        return source
    name, _, split = source.removeprefix(_SCHEME).partition("/")
    if name not in _NAMES or split not in _FILES:
        known = ", ".join(f"{_SCHEME}{known}/{part}" for known in _NAMES for part in _FILES)
        raise InputError(f"no embedded corpus {source}", f"there are: {known}")
    key = f"corpora/{name}/{_FILES[split]}"
    if workspace.head(key) is None:
        _copy(name, workspace)
    return f"{workspace.uri}/{key}"


def _copy(name: str, workspace: Store) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if name == "digits":
            write_digits(folder)
        else:
            folder = Path(str(importlib.resources.files("pipeline.corpus.embedded.fashion_mnist")))
        for file in _FILES.values():
            workspace.put(f"corpora/{name}/{file}", (folder / file).read_bytes())


def write_digits(folder: Path) -> None:
    """Write 1,197 training and 600 test images below *folder*, as parquet in the layout of the Hugging Face hub."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second to import, and only digits need it

    bunch = load_digits()
    pixels = (bunch.images * (255 / 16)).round().astype(np.uint8)
    labels = [int(label) for label in bunch.target]
    test_rows = _test_rows(labels)
    for name, rows in (
        (TRAIN_FILE, [row for row in range(len(labels)) if row not in test_rows]),
        (TEST_FILE, sorted(test_rows)),
    ):
        images = [encode_png(pixels[row], compress_level=0) for row in rows]
        write_split(folder / name, images, [labels[row] for row in rows], CLASS_NAMES)


def _test_rows(labels: list[int]) -> set[int]:
    """The rows for testing: in each class, those whose number has the smallest sha256."""
    chosen: set[int] = set()
    for label in sorted(set(labels)):
        rows = [row for row, row_label in enumerate(labels) if row_label == label]
        rows.sort(key=lambda row: hashlib.sha256(f"digits/{row}".encode()).digest())
        chosen.update(rows[:_NUM_TEST_PER_CLASS])
    return chosen


def encode_png(pixels: np.ndarray, compress_level: int = 9) -> bytes:
    """Grey *pixels* (H, W) of uint8 as a PNG. Its bytes depend on the zlib inside Pillow, but not at level 0."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, format="PNG", optimize=compress_level == 9, compress_level=compress_level)
    return target.getvalue()


def write_split(path: Path, images: Sequence[bytes], labels: Sequence[int], class_names: Sequence[str]) -> None:
    """Write one split: columns ``image`` (bytes, path) and ``label``, with the features in the schema's metadata."""
    split = path.name.partition("-")[0]
    rows = [{"bytes": data, "path": f"{split}-{number:05d}.png"} for number, data in enumerate(images)]
    features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={b"huggingface": json.dumps({"info": {"features": features}}).encode()},
    )
    table = pa.table({"image": rows, "label": list(labels)}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    # PNGs of 28x28 share their headers: zstd saves an eighth. Small row groups suit readers that sample.
    pq.write_table(table, path, compression="zstd", row_group_size=1000, use_dictionary=False, write_statistics=False)
