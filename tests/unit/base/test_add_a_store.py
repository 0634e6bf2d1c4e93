"""A store is added by the guide in pipeline/base/store/README.md: one class, one row; then its URIs go everywhere."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.base.progress import Silent
from pipeline.base.store.local import LocalStore
from pipeline.base.store.open import SCHEMES, Scheme, normalise_uri, open_store
from pipeline.base.store.protocol import Store, Stores
from pipeline.shard.verify import verify_dataset
from pipeline.stream.dataset import DatasetReader
from tests.support.datasets import make_dataset


class ShelfStore(LocalStore):
    """A folder that is reached as ``shelf://path`` and, like a bucket, gives out no local paths."""

    @property
    def uri(self) -> str:
        return f"shelf://{self.root}"

    def local_path(self, key: str) -> Path | None:
        return None


def normalise(rest: str) -> str:
    if not rest.startswith("/"):
        raise InputError(f"{rest!r} is no shelf", "write shelf:///path")
    return f"shelf://{rest.rstrip('/')}"


def open_shelf(uri: str, stores: Stores) -> Store:
    return ShelfStore(Path(uri.removeprefix("shelf://")))


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setitem(SCHEMES, "shelf", Scheme("shelf:///path", normalise, open_shelf))
    return f"shelf://{tmp_path}/ws"


def test_its_uris_are_taken_like_any_others(shelf: str) -> None:
    assert normalise_uri(f"{shelf}/") == shelf
    with pytest.raises(InputError, match="no shelf"):
        open_store("shelf://host")
    with pytest.raises(InputError, match=r"use s3://bucket/prefix, file:///path, shelf:///path or a plain path"):
        open_store("drawer:///path")
    assert pickle.loads(pickle.dumps(open_store(shelf))).uri == shelf


def test_a_dataset_is_written_verified_and_read_there(shelf: str, tmp_path: Path) -> None:
    store = open_store(shelf)
    card = make_dataset(store, "photos", num_samples=8, num_classes=2)
    assert verify_dataset(open_store(f"{shelf}/datasets/photos"), "full", Silent()) == []
    reader = DatasetReader(store, "photos", cache=tmp_path / "cache")
    assert reader.card.digest == card.digest
    assert sum(1 for _ in reader.read_many([(0, 0), (0, 1)])) == 2
    assert list((tmp_path / "cache").rglob("*")), "a store without local paths is read through the cache"
    reader.close()


def test_without_its_row_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shelf: URIs like this are not read"):
        open_store(f"shelf://{tmp_path}/ws")
