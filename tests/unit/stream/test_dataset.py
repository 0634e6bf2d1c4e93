"""Reading by offset: in place, through the cache and by range, with bounded handles and indexes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, StoreAccessError
from pipeline.base.retry import RetryPolicy
from pipeline.base.store import Store, open_store
from pipeline.records.dataset import CARD, SHARDS_SCHEMA, read_dataset_card
from pipeline.stream.dataset import DatasetReader, Sample, SampleDamagedError
from tests.support.datasets import make_dataset
from tests.support.far import FarStore

PLACES = [(shard, row) for row in range(10) for shard in (2, 0, 3, 1)]


@pytest.fixture
def near(tmp_path: Path) -> Store:
    """A workspace of its own with dataset ``tiny``: 40 images in four shards."""
    store = open_store(str(tmp_path / "near"))
    make_dataset(store, "tiny", num_samples=40, size=16, max_samples=10)
    return store


@pytest.fixture
def far(near: Store, tmp_path: Path) -> FarStore:
    """The same as a bucket."""
    return FarStore(tmp_path / "near")


def reader_of(store: Store, tmp_path: Path, **settings: object) -> DatasetReader:
    """A reader with a cache of its own."""
    return DatasetReader(store, "tiny", cache=tmp_path / "cache", **settings)  # type: ignore[arg-type]


def read(reader: DatasetReader) -> list[Sample]:
    """Every sample, the shards in turn."""
    return [reader.read(shard, row) for shard, row in PLACES]


def handles() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("check", ["digest", "header"])
def test_all_ways_of_reading_give_the_same(near: Store, far: FarStore, tmp_path: Path, check: str) -> None:
    wanted = read(DatasetReader(near, "tiny"))
    assert read(reader_of(far, tmp_path, check=check)) == wanted
    ranged = reader_of(far, tmp_path, check=check, access="ranged")
    assert read(ranged) == wanted
    assert list(ranged.read_many(PLACES)) == wanted
    assert list(reader_of(near, tmp_path, check=check, access="ranged").read_many(iter(PLACES))) == wanted


def test_ranges_ask_for_nothing_but_the_sample_and_keep_nothing(far: FarStore, tmp_path: Path) -> None:
    reader = reader_of(far, tmp_path, access="ranged")
    reader.read(1, 3)
    key, start = far.asked[-1]
    assert key.endswith("shard-000001.tar")
    assert start > 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_so_many_shards_are_open_and_no_more(near: Store, limit: int) -> None:
    reader = DatasetReader(near, "tiny", open_shards=limit)
    before = handles()
    for shard, row in PLACES:
        reader.read(shard, row)
        assert handles() - before <= limit
    assert handles() - before == limit
    reader.close()
    assert handles() == before


def test_indexes_are_kept_within_their_bytes(far: FarStore, tmp_path: Path) -> None:
    wanted = read(reader_of(far, tmp_path))
    assert far.fetched(".parquet").count("shard-000001.parquet") == 1
    assert read(reader_of(far, tmp_path, access="ranged", index_bytes=1)) == wanted
    assert far.fetched(".parquet").count("shard-000001.parquet") == 11  # thrown out each time that another is read


def test_a_missing_shard_costs_its_samples_and_one_question(far: FarStore, tmp_path: Path) -> None:
    far.delete("datasets/tiny/shard-000001.tar")
    for access in ("cached", "ranged"):
        reader = reader_of(far, tmp_path, access=access)
        far.asked.clear()
        for row in range(10):
            with pytest.raises(SampleDamagedError, match=r"shard-000001\.tar is missing") as caught:
                reader.read(1, row)
            assert (caught.value.shard, caught.value.key) == ("shard-000001.tar", reader.keys(1)[row])
            assert caught.value.offset > 0
        assert len([key for key, _ in far.asked if key.endswith("1.tar")]) == 1
        assert reader.read(0, 0).data


@pytest.mark.parametrize("what", ["missing", "damaged"])
def test_a_lost_index_costs_the_samples_of_its_shard(far: FarStore, tmp_path: Path, what: str) -> None:
    key = "datasets/tiny/shard-000001.parquet"
    if what == "missing":
        far.delete(key)
    else:
        far.put(key, far.read(key)[:-1])
    for access in ("cached", "ranged"):
        reader = reader_of(far, tmp_path, access=access)
        far.asked.clear()
        for row in range(10):
            with pytest.raises(SampleDamagedError, match=f"shard-000001.tar: row {row}: {key} is {what}") as caught:
                reader.read(1, row)
            assert caught.value.key == f"row {row}"
        assert len(far.asked) <= 2
        with pytest.raises(DamageError, match=f"{key} is {what}"):
            reader.keys(1)
        assert reader.read(0, 0).data


def test_what_comes_damaged_by_range_is_asked_for_once_more(far: FarStore, tmp_path: Path) -> None:
    wanted = read(reader_of(far, tmp_path))
    path = far.root / "datasets/tiny/shard-000001.tar"
    good = path.read_bytes()
    bad = bytearray(good)
    for at in range(0, len(bad), 100):
        bad[at] ^= 1
    states = {0: bytes(bad), 1: good}
    reader = reader_of(far, tmp_path, access="ranged")
    reader.keys(1)
    far.asked.clear()
    far.mood = lambda key: path.write_bytes(states[min(len(far.asked) - 1, 1)])
    assert reader.read(1, 0) == wanted[3]
    assert len(far.asked) == 2


def test_read_many_gives_damaged_samples_in_their_place(far: FarStore, tmp_path: Path) -> None:
    wanted = read(reader_of(far, tmp_path))
    far.delete("datasets/tiny/shard-000001.tar")
    for access in ("cached", "ranged"):
        reader = reader_of(far, tmp_path / access, access=access)
        for found, expected, (shard, _) in zip(reader.read_many(PLACES), wanted, PLACES, strict=True):
            assert isinstance(found, SampleDamagedError) if shard == 1 else found == expected


def test_a_store_that_stays_away_is_no_damage(far: FarStore, tmp_path: Path) -> None:
    readers = [reader_of(far, tmp_path, access=access, retry=RetryPolicy(0)) for access in ("cached", "ranged")]

    def away(key: str) -> None:
        raise StoreAccessError(f"{key}: no answer")

    far.mood = away
    for reader in readers:
        for _ in range(2):
            with pytest.raises(StoreAccessError, match="no answer"):
                reader.read(1, 1)
    far.mood = None
    assert readers[0].read(1, 1) == readers[1].read(1, 1)


def test_a_table_of_another_card_is_refused(near: Store, tmp_path: Path) -> None:
    card = read_dataset_card(near, "tiny")
    near.put(f"datasets/tiny/{CARD}", card.model_copy(update={"digest": "0" * 64}).to_json())
    with pytest.raises(DamageError, match=r"shards\.parquet is not the table of the dataset's card"):
        DatasetReader(near, "tiny")


def test_an_index_of_another_shard_costs_its_samples_and_one_fetch(near: Store, far: FarStore, tmp_path: Path) -> None:
    """Everything has the digest that the card names, and yet it does not fit together."""
    entries = DatasetReader(near, "tiny").shards[:]
    keys = [f"datasets/tiny/shard-{number:06d}.parquet" for number in (2, 3)]
    indexes = [near.read(key) for key in keys]
    for key, index in zip(keys, reversed(indexes), strict=True):
        near.put(key, index)
    digests = {2: entries[3].index_sha256, 3: entries[2].index_sha256}
    rows = [
        {**entry.model_dump(), "index_sha256": digests.get(at, entry.index_sha256)} for at, entry in enumerate(entries)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SHARDS_SCHEMA), far.root / "datasets/tiny/shards.parquet")
    card = read_dataset_card(near, "tiny")
    tables = card.tables | {"shards.parquet": sha256_hex(near.read("datasets/tiny/shards.parquet"))}
    near.put(f"datasets/tiny/{CARD}", card.model_copy(update={"tables": tables}).to_json())
    reader = reader_of(far, tmp_path)
    for row in range(10):
        with pytest.raises(SampleDamagedError, match=r"shard-000002\.tar: sample .*: no such member there"):
            reader.read(2, row)
    assert far.fetched() == ["shard-000002.tar"] * 2


def test_a_missing_table_is_told(near: Store) -> None:
    near.delete("datasets/tiny/shards.parquet")
    with pytest.raises(DamageError, match=r"shards\.parquet is missing"):
        DatasetReader(near, "tiny")


def test_an_error_can_be_sent_to_another_process(near: Store) -> None:
    error = DatasetReader(near, "tiny").damaged(2, 3, "not-an-image")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is SampleDamagedError
    assert str(copy) == str(error)
    assert (copy.shard, copy.key, copy.offset, copy.reason) == (error.shard, error.key, error.offset, "not-an-image")
    assert f"shard-000002.tar: sample {error.key} at byte {error.offset}: not-an-image" in str(error)
