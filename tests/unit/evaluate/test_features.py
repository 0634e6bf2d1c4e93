"""Features: computed once per (weights, dataset), read back whole, and never taken for something else's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.errors import DamageError
from pipeline.base.store import Store, open_store
from pipeline.evaluate import features
from pipeline.evaluate.features import load_features
from pipeline.evaluate.subject import PixelNetwork, Subject, load_network
from pipeline.images.normalise import normalise
from pipeline.records.score import PIXELS
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.passes import each_once
from tests.support.datasets import make_dataset
from tests.support.subjects import TRANSFORM, put_network, tiny


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A workspace with a dataset of 23 pictures in three shards."""
    store = open_store(str(tmp_path))
    make_dataset(store, "d", num_samples=23, num_classes=4, size=8, max_samples=9)
    return store


@pytest.fixture
def several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and batches so small that there are several."""
    monkeypatch.setattr(features, "_BATCH", 5)
    monkeypatch.setattr(features, "_PART_SAMPLES", 10)


def forbid_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, what loads a network fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("the features were computed again")

    monkeypatch.setattr(features, "load_network", refuse)


def stored(store: Store) -> set[str]:
    """The features that a workspace holds."""
    return {info.key.split("/")[1] for info in store.list("features/") if info.key.endswith("/features.json")}


def test_they_are_the_networks_features_of_every_sample_in_order(store: Store, several_parts: None) -> None:
    subject = put_network(store, tiny())
    found = load_features(store, subject, "d")
    (batch,) = each_once(DatasetReader(store, "d"), subject.evaluation_transform, 100)
    with torch.inference_mode():
        expected = load_network(store, subject).features(normalise(batch.images, torch.float32))
    assert found.keys == tuple(batch.keys)
    assert found.labels.tolist() == batch.labels.tolist()
    assert found.features.dtype == np.float32
    np.testing.assert_allclose(found.features, expected.numpy(), rtol=1e-5, atol=1e-5)
    assert len([info for info in store.list("features/") if "part-" in info.key]) == 3


def test_the_second_time_nothing_is_computed(
    store: Store, several_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = put_network(store, tiny())
    first = load_features(store, subject, "d")
    forbid_computing(monkeypatch)
    second = load_features(store, subject, "d")
    assert second.keys == first.keys
    assert np.array_equal(second.features, first.features)
    assert np.array_equal(second.labels, first.labels)


def test_without_the_card_they_do_not_exist(store: Store, several_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = put_network(store, tiny())
    load_features(store, subject, "d")
    (identifier,) = stored(store)
    before = {info.key: store.read(info.key) for info in store.list("features/")}
    store.delete(f"features/{identifier}/features.json")
    load_features(store, subject, "d")
    assert {info.key: store.read(info.key) for info in store.list("features/")} == before
    store.delete(f"features/{identifier}/features.json")
    forbid_computing(monkeypatch)
    with pytest.raises(AssertionError, match="computed again"):
        load_features(store, subject, "d")


def test_they_are_named_by_weights_dataset_and_transform(store: Store) -> None:
    make_dataset(store, "other", num_samples=23, num_classes=4, size=8, max_samples=9, seed=1)
    make_dataset(store, "same", num_samples=23, num_classes=4, size=8, max_samples=9)
    subject, second = put_network(store, tiny()), put_network(store, tiny(), seed=1)
    load_features(store, subject, "d")
    assert len(stored(store)) == 1
    load_features(store, subject, "same")  # the same samples under another name
    assert len(stored(store)) == 1
    load_features(store, Subject(subject.weights_digest, subject.weights_key, TRANSFORM, 7), "d")
    assert len(stored(store)) == 1
    load_features(store, subject, "other")
    assert len(stored(store)) == 2
    load_features(store, second, "d")
    assert len(stored(store)) == 3
    load_features(store, Subject(subject.weights_digest, subject.weights_key, TRANSFORM | {"resize": 9}, 100), "d")
    assert len(stored(store)) == 4


@pytest.mark.parametrize("harm", ["flip", "cut", "drop", "card"])
def test_damage_is_told(store: Store, several_parts: None, harm: str) -> None:
    subject = put_network(store, tiny())
    load_features(store, subject, "d")
    (identifier,) = stored(store)
    part, card = f"features/{identifier}/part-00001.safetensors", f"features/{identifier}/features.json"
    data = bytearray(store.read(part))
    data[-3] ^= 1
    if harm == "drop":
        store.delete(part)
    elif harm == "card":
        store.put(card, store.read(card)[:50])
    else:
        store.put(part, bytes(data) if harm == "flip" else bytes(data[:-8]))
    with pytest.raises(DamageError, match="features.json" if harm == "card" else "part-00001.safetensors"):
        load_features(store, subject, "d")


def test_weights_that_are_not_those_of_the_digest_are_refused(store: Store) -> None:
    subject, other = put_network(store, tiny()), put_network(store, tiny(), seed=1)
    with pytest.raises(DamageError, match="not those that the checkpoint's card names"):
        load_features(store, Subject(subject.weights_digest, other.weights_key, TRANSFORM, 100), "d")
    with pytest.raises(DamageError, match="nowhere vanished"):
        load_features(store, Subject(subject.weights_digest, "nowhere", TRANSFORM, 100), "d")
    assert not stored(store)


def test_raw_pixels_stand_in_for_features(store: Store) -> None:
    found = load_features(store, Subject(PIXELS, "", TRANSFORM, None), "d")
    (batch,) = each_once(DatasetReader(store, "d"), Subject(PIXELS, "", TRANSFORM, None).evaluation_transform, 100)
    assert found.features.shape == (23, 3 * 8 * 8)
    np.testing.assert_allclose(found.features, batch.images.flatten(1).numpy() / 127.5 - 1, atol=1e-6)
    assert PixelNetwork(5, 8)(torch.zeros(2, 3, 8, 8)).tolist() == [[0.0] * 5] * 2


def test_taking_rows_keeps_them_together(store: Store) -> None:
    found = load_features(store, put_network(store, tiny()), "d")
    chosen = np.arange(23) % 3 == 0
    taken = found.take(chosen)
    assert taken.keys == found.keys[::3]
    assert np.array_equal(taken.features, found.features[::3])
    assert np.array_equal(taken.labels, found.labels[::3])
