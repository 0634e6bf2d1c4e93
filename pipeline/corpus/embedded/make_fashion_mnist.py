"""How the two parquet files in fashion_mnist/ were made, from Debian's package dataset-fashion-mnist.

    apt-get install dataset-fashion-mnist
    python -m pipeline.corpus.embedded.make_fashion_mnist

The first 10,000 training images and the first 2,000 test images, in their order.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from pipeline.corpus.embedded.corpora import TEST_FILE, TRAIN_FILE, encode_png, write_split

SOURCE = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_SPLITS = ((TRAIN_FILE, "train", 10_000), (TEST_FILE, "t10k", 2_000))


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes in an IDX file: two zeros, type 8, number of dimensions, their sizes, the content."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes")
    num_dimensions = data[3]
    shape = np.frombuffer(data, ">u4", num_dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)


def make(source: Path, folder: Path) -> None:
    """Write both splits below *folder* from the four files below *source*."""
    for file, name, num_images in _SPLITS:
        pixels = read_idx(source / f"{name}-images-idx3-ubyte.gz")[:num_images]
        labels = read_idx(source / f"{name}-labels-idx1-ubyte.gz")[:num_images]
        write_split(folder / file, [encode_png(image) for image in pixels], labels.tolist(), CLASS_NAMES)


if __name__ == "__main__":
    make(SOURCE, Path(__file__).parent / "fashion_mnist")
