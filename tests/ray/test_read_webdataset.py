"""Ray's own ``read_webdataset`` reads the shards, with the bytes and labels that went in."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.data
from PIL import Image

from pipeline.base.store import open_store
from pipeline.records.corpus import key_of
from pipeline.shard.recipe import ShardRecipe
from tests.support.datasets import corpus_of, shard_corpus
from tests.support.pictures import noise, png

IMAGES: dict[str, bytes | None] = {f"{at}.png": png(noise(9, 7, at)) for at in range(12)}
SINGLE = {origin: [at % 4] for at, origin in enumerate(IMAGES)}
SEVERAL = {origin: [[], [0, 3]][at % 2] for at, origin in enumerate(IMAGES)}


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """A Ray of this process, with one CPU."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def rows_of(root: Path, labels: dict[str, list[int]], **options: Any) -> dict[str, dict[str, Any]]:
    """What Ray reads of a dataset in three shards, by origin."""
    corpus = corpus_of(IMAGES, labels, ("a", "b", "c", "d"))
    card = shard_corpus(open_store(str(root)), "x", corpus, ShardRecipe(max_samples=5))
    assert card.num_shards == 3
    paths = sorted(str(path) for path in (root / "datasets" / "x").glob("*.tar"))
    rows = ray.data.read_webdataset(paths, **options).take_all()
    origins = {key_of(origin): origin for origin in IMAGES}
    found = {origins[row["__key__"]]: row for row in rows}
    assert len(found) == len(rows) == len(IMAGES)
    return found


def test_the_bytes_are_those_that_went_in(tmp_path: Path) -> None:
    found = rows_of(tmp_path, SINGLE, decoder=None)  # False decodes, too
    assert {origin: row["png"] for origin, row in found.items()} == IMAGES
    assert {origin: [int(row["cls"])] for origin, row in found.items()} == SINGLE


def test_its_decoder_gives_pixels_and_numbers(tmp_path: Path) -> None:
    found = rows_of(tmp_path, SINGLE)
    assert {origin: [row["cls"]] for origin, row in found.items()} == SINGLE
    for origin, row in found.items():
        assert np.array_equal(row["png"], np.asarray(Image.open(io.BytesIO(IMAGES[origin] or b""))))


def test_several_labels(tmp_path: Path) -> None:
    found = rows_of(tmp_path, SEVERAL)
    assert {origin: list(row["json"]["labels"]) for origin, row in found.items()} == SEVERAL
