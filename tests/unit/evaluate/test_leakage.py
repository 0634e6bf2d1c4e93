"""An image that is in the training and in the test dataset is found whatever it is called, and nothing is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import Store, open_store
from pipeline.evaluate import leakage as leak
from pipeline.evaluate.evaluators.registry import REGISTRY
from pipeline.evaluate.leakage import refuse_shared_images
from pipeline.evaluate.recipe import Task
from pipeline.records.dataset import read_dataset_card
from pipeline.shard.recipe import ShardRecipe
from tests.support.datasets import corpus_of, shard_corpus
from tests.support.pictures import noise, png
from tests.support.stored_models import planned_of, put_network, tiny

CLASSES = ("a", "b")


def put(store: Store, name: str, seeds: dict[str, int]) -> None:
    """A dataset of noise pictures by origin, in shards of seven."""
    images = {origin: png(noise(8, 8, seed)) for origin, seed in seeds.items()}
    labels = {origin: [place % 2] for place, origin in enumerate(seeds)}
    shard_corpus(store, name, corpus_of(images, labels, CLASSES), ShardRecipe(max_samples=7))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Training pictures 0 to 39; "clean" has others, "leaking" two of them under other names."""
    store = open_store(str(tmp_path))
    put(store, "train", {f"t/{seed}.png": seed for seed in range(40)})
    put(store, "clean", {f"t/{seed}.png": 100 + seed for seed in range(12)})  # the same names, other pictures
    put(store, "leaking", {f"u/{place}.png": seed for place, seed in enumerate([200, 17, 201, 33, 202])})
    return store


def test_names_do_not_count_and_pictures_do(store: Store) -> None:
    refuse_shared_images(store, "train", "clean")
    for train, test in (("train", "leaking"), ("leaking", "train")):
        with pytest.raises(InputError, match=f"{train} and {test} share 2 images") as refused:
            refuse_shared_images(store, train, test)
    key = read_key(store, "train", 17)
    assert key in str(refused.value)


def read_key(store: Store, dataset: str, place: int) -> str:
    """The key of the sample of that origin."""
    for info in store.list(f"datasets/{dataset}/shard-"):
        if info.key.endswith(".parquet"):
            table = leak.read_parquet(store.read(info.key))
            for key, origin in zip(table["key"].to_pylist(), table["origin"].to_pylist(), strict=True):
                if origin == f"t/{place}.png":
                    return str(key)
    raise KeyError(place)


@pytest.mark.parametrize("test", ["clean", "leaking"])
def test_equal_beginnings_of_digests_are_not_taken_for_equal_images(
    store: Store, monkeypatch: pytest.MonkeyPatch, test: str
) -> None:
    monkeypatch.setattr(leak, "_prefixes", lambda digests: np.zeros(len(digests), np.uint64))
    if test == "clean":
        refuse_shared_images(store, "train", test)
    else:
        with pytest.raises(InputError, match="share 2 images"):
            refuse_shared_images(store, "train", test)


@pytest.mark.parametrize("evaluator", sorted(REGISTRY))
def test_every_evaluator_refuses_before_it_computes(store: Store, evaluator: str) -> None:
    asked = planned_of(evaluator, put_network(store, tiny(2)))
    with pytest.raises(InputError, match="share 2 images"):
        REGISTRY[evaluator].run(store, replace(asked, task=Task(train="train", test="leaking", validation=0.3)))
    assert not list(store.list("features/"))


def test_the_store_is_asked_once_for_a_pair(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = leak._refusal
    monkeypatch.setattr(leak, "_refusal", lambda *given: (calls.append("asked"), real(*given))[1])
    for _ in range(2):
        refuse_shared_images(store, "train", "clean")
        with pytest.raises(InputError):
            refuse_shared_images(store, "train", "leaking")
    assert len(calls) == 2
    for info in list(store.list("datasets/clean/")):
        store.delete(info.key)
    put(store, "clean", {"now/another.png": 5})  # of another digest: asked again
    assert read_dataset_card(store, "clean").num_samples == 1
    with pytest.raises(InputError, match="share 1 image "):
        refuse_shared_images(store, "train", "clean")


def test_a_damaged_index_is_told(store: Store) -> None:
    where = "datasets/leaking/shard-000000.parquet"
    store.put(where, store.read(where)[:-1] + b"x")
    with pytest.raises(DamageError, match=r"shard-000000\.parquet is damaged"):
        refuse_shared_images(store, "train", "leaking")
