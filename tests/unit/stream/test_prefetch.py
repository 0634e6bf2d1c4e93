"""Read-ahead: what comes next is there before it is needed, once, within bounds, and it ends when it is told to."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from pipeline.base.errors import StoreAccessError
from pipeline.base.retry import RetryPolicy
from pipeline.base.store import open_store
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.mixture import Mixture
from pipeline.stream.order import Order
from pipeline.stream.prefetch import Prefetcher
from tests.support.datasets import make_dataset
from tests.support.far import FarStore

SLOTS = [0, 1]
STRIDE = 5 * 2  # two partitions of windows of five: shards have five samples


@pytest.fixture
def far(tmp_path: Path) -> FarStore:
    """A far workspace with dataset ``tiny``: 60 images in twelve shards."""
    make_dataset(open_store(str(tmp_path / "far")), "tiny", num_samples=60, size=8, max_samples=5)
    return FarStore(tmp_path / "far")


@pytest.fixture
def reader(far: FarStore, tmp_path: Path) -> DatasetReader:
    """Reads it."""
    return DatasetReader(far, "tiny", cache=tmp_path / "cache", retry=RetryPolicy(60))


@pytest.fixture
def mixture(reader: DatasetReader) -> Mixture:
    """Its order."""
    return Mixture([Order(reader.shards.sizes.tolist(), reader.card.digest, seed=0, partitions=2, window=5)])


@pytest.fixture
def begin(reader: DatasetReader, mixture: Mixture) -> Iterator[Callable[..., Prefetcher]]:
    """Begins a read-ahead that the fixture ends."""
    begun = []

    def start(position: int = 0, shards: int = 4, share_bytes: int = 10**9, threads: int = 2) -> Prefetcher:
        made = Prefetcher([reader], mixture, SLOTS, position, shards=shards, share_bytes=share_bytes, threads=threads)
        begun.append(made)
        return made

    yield start
    for made in begun:
        made.close()


def distinct(mixture: Mixture, position: int, count: int) -> list[tuple[int, int]]:
    """The first *count* shards that are needed from *position* on."""
    found: dict[tuple[int, int], None] = {}
    for need in islice(mixture.shards_ahead(position, SLOTS), 16 * count):
        found[need] = None
    return list(found)[:count]


def until(true: Callable[[], object]) -> None:
    """Return once *true* says so."""
    tick = threading.Event()
    for _ in range(5000):
        if true():
            return
        tick.wait(0.002)
    raise AssertionError("it did not happen")


def test_the_next_shards_are_there_before_they_are_read(
    begin: Callable[..., Prefetcher], far: FarStore, reader: DatasetReader, mixture: Mixture
) -> None:
    ahead = begin()
    wanted = distinct(mixture, 0, 4)
    until(lambda: ahead.is_idle)
    assert ahead.ready == set(wanted)
    assert sorted(far.fetched()) == sorted(reader.shards[shard].name for _, shard in wanted)
    before = len(far.asked)
    assert [reader.read(shard, row).data for _, shard in wanted for row in range(5)]
    assert len(far.asked) == before  # neither shards nor indexes


def test_one_thread_fetches_them_in_the_order_of_need(
    begin: Callable[..., Prefetcher], far: FarStore, reader: DatasetReader, mixture: Mixture
) -> None:
    ahead = begin(shards=6, threads=1)
    until(lambda: len(ahead.ready) == 6)
    assert far.fetched() == [reader.shards[shard].name for _, shard in distinct(mixture, 0, 6)]


def test_it_follows_the_position_and_lets_go_of_what_was_read(
    begin: Callable[..., Prefetcher], far: FarStore, mixture: Mixture
) -> None:
    ahead = begin()
    until(lambda: len(ahead.ready) == 4)
    for position in range(0, 60, 4):  # an epoch
        ahead.advance(position)
    wanted = set(distinct(mixture, 56, 4))
    until(lambda: ahead.is_idle)
    assert ahead.ready == wanted
    assert len(far.fetched()) == len(set(far.fetched()))


def test_it_fetches_no_more_than_its_share(
    begin: Callable[..., Prefetcher], reader: DatasetReader, mixture: Mixture
) -> None:
    wanted = distinct(mixture, 0, 3)
    share = sum(reader.shards[shard].num_bytes for _, shard in wanted) + 100
    ahead = begin(shards=12, share_bytes=share)
    until(lambda: ahead.is_idle)
    assert ahead.ready == set(wanted)
    tiny = begin(shards=12, share_bytes=1)
    until(lambda: tiny.is_idle)
    assert tiny.ready == set(wanted[:1])


def test_more_shards_than_there_are_is_no_endless_search(begin: Callable[..., Prefetcher]) -> None:
    ahead = begin(shards=100)
    until(lambda: ahead.is_idle)
    assert len(ahead.ready) == 12


def test_an_error_is_met_by_the_reader_that_needs_the_shard(
    begin: Callable[..., Prefetcher], far: FarStore, reader: DatasetReader, mixture: Mixture
) -> None:
    first, second, *_ = (shard for _, shard in distinct(mixture, 0, 4))
    far.delete(f"datasets/tiny/{reader.shards[first].name}")
    ahead = begin()
    until(lambda: ahead.is_idle)
    assert len(ahead.ready) == 3
    assert [*ahead.errors] == [(0, first)]
    assert reader.read(second, 0).data
    with pytest.raises(Exception, match=f"{reader.shards[first].name} is missing"):
        reader.read(first, 0)


def test_two_share_the_work(begin: Callable[..., Prefetcher], far: FarStore, mixture: Mixture) -> None:
    both = [begin(shards=8, threads=1) for _ in range(2)]
    wanted = set(distinct(mixture, 0, 8))
    until(lambda: all(ahead.ready == wanted for ahead in both))
    assert len(far.fetched()) == 8


def test_it_ends_while_the_store_is_away(begin: Callable[..., Prefetcher], far: FarStore, tmp_path: Path) -> None:
    asked = threading.Event()

    def away(key: str) -> None:
        asked.set()
        raise StoreAccessError(f"{key}: no answer")

    far.mood = away
    before, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    ahead = begin()
    assert asked.wait(10)
    ahead.close()
    assert not [one for one in set(threading.enumerate()) - threads if one.name == "prefetch"]
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "lock"]


def test_in_a_folder_nothing_is_fetched(tmp_path: Path, far: FarStore, mixture: Mixture) -> None:
    reader = DatasetReader(open_store(far.uri), "tiny", cache=tmp_path / "cache")
    ahead = Prefetcher([reader], mixture, SLOTS, 0, shards=4, share_bytes=10**9)
    try:
        until(lambda: len(ahead.ready) == 4)
    finally:
        ahead.close()
    assert not (tmp_path / "cache").exists()


def test_by_range_nothing_is_fetched(tmp_path: Path, far: FarStore, mixture: Mixture) -> None:
    reader = DatasetReader(far, "tiny", cache=tmp_path / "cache", access="ranged")
    far.asked.clear()
    Prefetcher([reader], mixture, SLOTS, 0, shards=4, share_bytes=10**9).close()
    assert far.asked == []
