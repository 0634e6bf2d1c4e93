"""What a run is trained on: a dataset, or a mixture of datasets with the same classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.base.config import build
from pipeline.base.digests import fingerprint
from pipeline.base.errors import InputError, MismatchError, RecipeError
from pipeline.base.store import Store, open_store
from pipeline.pretrain.plan import read_training_data
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.run_card import open_run_card
from pipeline.records.run import read_run_card
from tests.support.datasets import make_dataset

MODEL = {"name": "S/16", "image_size": 16}


def recipe(dataset: Any, **fields: Any) -> PretrainRecipe:
    """A recipe over *dataset*."""
    stream = {"batch_size": 8, "partitions": 4, "augment": {"size": 16}, **fields}
    tree = {"run": "r", "dataset": dataset, "steps": 4, "model": MODEL, "stream": stream}
    return build(PretrainRecipe, tree | {"transform": {"size": 16, "resize": 16}, "schedule": {"warmup_steps": 1}})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Datasets ``a`` and ``b`` of four classes, ``c`` of three."""
    workspace = open_store(str(tmp_path))
    for number, (name, classes) in enumerate((("a", 4), ("b", 4), ("c", 3))):
        make_dataset(workspace, name, num_samples=12, num_classes=classes, size=8, seed=number)
    return workspace


def test_one_dataset_is_its_own_card(store: Store) -> None:
    plain = read_training_data(store, recipe("a"))
    assert plain == read_training_data(store, recipe({"a": 5}))
    assert (plain.name, plain.num_samples) == ("a", 12)


def test_a_mixture_is_named_by_digests_and_whole_weights_whatever_their_order(store: Store) -> None:
    mixed = read_training_data(store, recipe({"b": 0.25, "a": 0.75}))
    a, b = (read_training_data(store, recipe(name)) for name in "ab")
    assert mixed.digest == fingerprint([[a.digest, 3], [b.digest, 1]])
    assert mixed.digest == read_training_data(store, recipe({"a": 3, "b": 1})).digest
    assert mixed.digest != read_training_data(store, recipe({"a": 1, "b": 3})).digest
    assert (mixed.name, mixed.num_samples, mixed.class_names) == ("0.75 a + 0.25 b", 24, a.class_names)


def test_classes_have_to_be_the_same(store: Store) -> None:
    with pytest.raises(MismatchError, match="datasets a and c cannot be mixed: they have 4 and 3 classes"):
        read_training_data(store, recipe({"a": 1, "c": 1}))


def test_a_missing_dataset_of_a_mixture_is_refused_by_name(store: Store) -> None:
    with pytest.raises(InputError, match="no dataset 'd'"):
        read_training_data(store, recipe({"a": 1, "d": 1}))


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        ({}, "name at least one dataset"),
        ({"a": 0}, "positive"),
        ({"a": -1, "b": 1}, "positive"),
        ({"a": float("nan")}, "positive"),
        ({"a/b": 1}, "'a/b' is no name of a dataset"),
        ({"a": "much"}, "names to weights"),
        (3, "3 is no name of a dataset"),
        ({"a": 1, "b": 0.00001}, "round them"),
    ],
)
def test_weights_and_names_that_cannot_be_are_refused(dataset: Any, told: str) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        recipe(dataset)
    assert len(caught.value.problems) == 1


def test_the_run_remembers_its_mixture_and_refuses_another(store: Store) -> None:
    first = recipe({"b": 1, "a": 3})
    open_run_card(store, first, read_training_data(store, first), "code")
    card = read_run_card(store, "r")
    assert card.dataset_weights == {"a": 3.0, "b": 1.0}
    assert card.dataset_name == "3 a + 1 b"
    again = recipe({"a": 3, "b": 1}, workers=2, ahead=5, audit=True, stall_seconds=3, cache_bytes="1 GB")
    assert open_run_card(store, again, read_training_data(store, again), "code") == card
    other = recipe({"a": 1, "b": 1})
    with pytest.raises(MismatchError, match=r"dataset\.a: 3\.0 -> 1\.0"):
        open_run_card(store, other, read_training_data(store, other), "code")
