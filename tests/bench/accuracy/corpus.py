"""Fashion-MNIST whole, 60,000 and 10,000 images of 28 x 28, as parquet files that ``vitpipe shard`` reads."""

from __future__ import annotations

from pathlib import Path

from pipeline.corpus.embedded.corpora import TEST_FILE, TRAIN_FILE, encode_png, write_split
from pipeline.corpus.embedded.make_fashion_mnist import CLASS_NAMES, SOURCE, read_idx

_SPLITS = {TRAIN_FILE: ("train", 60_000), TEST_FILE: ("t10k", 10_000)}


class MissingError(Exception):
    """The package is not installed."""


def make_corpus(folder: Path, source: Path = SOURCE) -> list[Path]:
    """The two files in *folder*, training part first; made from *source* unless they are there."""
    paths = []
    for file, (name, expected) in _SPLITS.items():
        path = folder / file
        paths.append(path)
        if path.exists():
            continue
        pixels, labels = (
            read_idx(_found(source, f"{name}-{part}-ubyte.gz")) for part in ("images-idx3", "labels-idx1")
        )
        assert len(pixels) == len(labels) == expected, f"{source}/{name}: {len(pixels)} images, {len(labels)} labels"
        partial = folder / "partial" / file
        write_split(partial, [encode_png(image, compress_level=1) for image in pixels], labels.tolist(), CLASS_NAMES)
        partial.rename(path)
    return paths


def _found(source: Path, name: str) -> Path:
    path = source / name
    if not path.exists():
        raise MissingError(
            f"{path} is not there: install Debian's package dataset-fashion-mnist (apt-get install"
            " dataset-fashion-mnist), or name the folder of its four files with --data"
        )
    return path
