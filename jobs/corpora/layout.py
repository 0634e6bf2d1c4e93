"""The layout of image parquet files on the Hugging Face hub, written so that equal images give equal bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TRAIN_FILE = "train-00000-of-00001.parquet"
TEST_FILE = "test-00000-of-00001.parquet"


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
