"""The shards of a dataset in a folder, read by stock webdataset: nothing of vitpipe is needed for that.

``python examples/read_with_webdataset.py WORKSPACE DATASET``
"""

from __future__ import annotations

import sys
from pathlib import Path

import webdataset


def main(workspace: str, dataset: str) -> None:
    """Print how many samples there are of each class number."""
    shards = sorted(str(path) for path in Path(workspace, "datasets", dataset).glob("shard-*.tar"))
    samples = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg;png", "cls")
    counts: dict[int, int] = {}
    for image, label in samples:
        assert image.mode == "RGB"
        counts[label] = counts.get(label, 0) + 1
    print("samples:", sum(counts.values()), "by class:", dict(sorted(counts.items())))


if __name__ == "__main__":
    main(*sys.argv[1:])
