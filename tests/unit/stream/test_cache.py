"""Shards from a bucket: fetched once, verified, evicted; a damaged copy is noticed and fetched again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.base.errors import DamageError
from pipeline.base.store import Store, open_store
from pipeline.base.store.local import LocalStore
from pipeline.records.dataset import ShardEntry
from pipeline.stream.cache import ShardCache
from pipeline.stream.dataset import DatasetReader
from tests.support.datasets import make_dataset


class FarStore(LocalStore):
    """A folder that cannot be read in place, like a bucket, and counts what is fetched."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fetched: list[str] = []

    def local_path(self, key: str) -> Path | None:
        return None

    def fetch(self, key: str, path: Path) -> None:
        self.fetched.append(key)
        path.write_bytes((self.root / key).read_bytes())


@pytest.fixture
def far(tmp_path: Path) -> FarStore:
    """A far workspace with dataset ``tiny``: 40 images in four shards."""
    make_dataset(open_store(str(tmp_path / "far")), "tiny", num_samples=40, size=16, max_samples=10)
    return FarStore(tmp_path / "far")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the cache is."""
    return tmp_path / "cache"


def read_all(workspace: Store, folder: Path) -> list[bytes]:
    """Every sample through a new reader."""
    reader = DatasetReader(workspace, "tiny", cache=folder)
    data = [reader.read(shard, row).data for shard in range(4) for row in range(reader.shards[shard].num_samples)]
    reader.close()
    return data


def files_in(folder: Path) -> list[Path]:
    """All files of the cache."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def entries_of(workspace: Store) -> list[ShardEntry]:
    """The shards of ``tiny``."""
    return DatasetReader(workspace, "tiny").shards


def key_of(entry: ShardEntry) -> str:
    """The key of a shard."""
    return f"datasets/tiny/{entry.name}"


def overwrite(path: Path, at: int, data: bytes) -> None:
    """Change some bytes of a file in place."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_each_shard_is_fetched_once_for_all_readers(far: FarStore, folder: Path) -> None:
    near = read_all(open_store(far.uri), folder)
    assert not folder.exists()  # a local workspace is read in place
    assert read_all(far, folder) == near
    assert read_all(far, folder) == near
    assert far.fetched == [key_of(entry) for entry in entries_of(far)]
    assert [path.stem for path in files_in(folder)] == sorted(entry.sha256 for entry in entries_of(far))


def test_what_arrives_damaged_is_refused_and_not_kept(far: FarStore, folder: Path) -> None:
    overwrite(far.root / "datasets/tiny/shard-000002.tar", 700, b"damage")
    reader = DatasetReader(far, "tiny", cache=folder)
    assert reader.read(1, 0).data
    with pytest.raises(DamageError, match=r"shard-000002\.tar: its bytes are not those"):
        reader.read(2, 0)
    assert [path.stem for path in files_in(folder)] == [reader.shards[1].sha256]


@pytest.mark.parametrize("size", [0, 1_000])
def test_a_cached_file_of_another_size_is_fetched_again(far: FarStore, folder: Path, size: int) -> None:
    wanted = read_all(far, folder)
    cached = files_in(folder)[0]
    cached.write_bytes(cached.read_bytes()[:size])
    assert read_all(far, folder) == wanted
    assert len(far.fetched) == 5


@pytest.mark.parametrize("part", ["bytes", "header"])
def test_a_damaged_cached_file_of_the_right_size_is_noticed_and_fetched_again(
    far: FarStore, folder: Path, part: str
) -> None:
    wanted = read_all(far, folder)
    reader = DatasetReader(far, "tiny", cache=folder)
    cached = ShardCache(far, folder).path(key_of(reader.shards[2]), reader.shards[2])
    good = cached.read_bytes()
    at = good.index(wanted[25]) + (100 if part == "bytes" else 3 - 512)
    overwrite(cached, at, b"damage")
    assert reader.read(2, 4).data == wanted[24]  # a neighbour is not touched
    assert reader.read(2, 5).data == wanted[25]
    assert far.fetched[4:] == [key_of(reader.shards[2])]
    assert cached.read_bytes() == good
    assert read_all(far, folder) == wanted
    assert len(far.fetched) == 5


def test_a_copy_that_is_damaged_like_the_store_is_refused(far: FarStore, folder: Path) -> None:
    wanted = read_all(far, folder)
    reader = DatasetReader(far, "tiny", cache=folder)
    cached = ShardCache(far, folder).path(key_of(reader.shards[2]), reader.shards[2])
    at = cached.read_bytes().index(wanted[25]) + 100
    for path in (cached, far.root / key_of(reader.shards[2])):
        overwrite(path, at, b"damage")
    with pytest.raises(DamageError, match=r"shard-000002\.tar"):
        reader.read(2, 5)


def test_the_least_recently_used_shards_are_evicted(far: FarStore, folder: Path) -> None:
    entries = entries_of(far)
    cache = ShardCache(far, folder, limit_bytes=entries[0].num_bytes * 3)
    paths = [cache.path(key_of(entry), entry) for entry in entries[:3]]
    for age, path in enumerate(paths):
        os.utime(path, (1_000 + age, 1_000 + age))
    cache.path(key_of(entries[0]), entries[0])  # used again: now shard 1 is the oldest
    cache.path(key_of(entries[3]), entries[3])
    assert [path.exists() for path in paths] == [True, False, True]
    assert far.fetched == [key_of(entry) for entry in entries]


def test_a_shard_larger_than_the_limit_is_still_served(far: FarStore, folder: Path) -> None:
    entries = entries_of(far)
    cache = ShardCache(far, folder, limit_bytes=1)
    for entry in entries:
        assert cache.path(key_of(entry), entry).stat().st_size == entry.num_bytes
        assert len(files_in(folder)) == 1


def test_a_shard_that_is_evicted_while_it_is_read_stays_readable(far: FarStore, folder: Path) -> None:
    wanted = read_all(far, folder)
    reader = DatasetReader(far, "tiny", cache=folder)
    assert reader.read(1, 0).data == wanted[10]
    for path in files_in(folder):
        path.unlink()
    assert reader.read(1, 1).data == wanted[11]


def test_a_file_that_another_process_evicts_meanwhile_is_no_error(
    far: FarStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.glob

    def with_a_ghost(self: Path, pattern: str) -> list[Path]:
        return [*original(self, pattern), folder / "00" / "gone.tar"]

    monkeypatch.setattr(Path, "glob", with_a_ghost)
    entry = entries_of(far)[0]
    assert ShardCache(far, folder, limit_bytes=1).path(key_of(entry), entry).exists()


def test_two_datasets_share_a_folder_without_cross_talk(tmp_path: Path, folder: Path) -> None:
    """Shards of the same name, different bytes."""
    contents = []
    for seed in range(2):
        make_dataset(open_store(str(tmp_path / str(seed))), "tiny", num_samples=40, size=16, max_samples=10, seed=seed)
        contents.append(read_all(FarStore(tmp_path / str(seed)), folder))
    assert contents[0] != contents[1]
    assert [read_all(FarStore(tmp_path / str(seed)), folder) for seed in range(2)] == contents
    assert len(files_in(folder)) == 8


def test_a_fetch_that_fails_leaves_nothing(far: FarStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: FarStore, key: str, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise ConnectionResetError(key)

    entry = entries_of(far)[0]
    with monkeypatch.context() as patched:
        patched.setattr(FarStore, "fetch", broken)
        with pytest.raises(ConnectionResetError):
            ShardCache(far, folder).path(key_of(entry), entry)
    assert files_in(folder) == []
    assert ShardCache(far, folder).path(key_of(entry), entry).stat().st_size == entry.num_bytes


def test_the_same_through_a_real_bucket(s3_workspace: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = open_store(s3_workspace)
    card = make_dataset(workspace, "tiny", num_samples=12, size=8, max_samples=6)
    fetched: list[str] = []
    original = type(workspace).fetch

    def noted(self: Store, key: str, path: Path) -> None:
        fetched.append(key)
        original(self, key, path)

    monkeypatch.setattr(type(workspace), "fetch", noted)
    reader = DatasetReader(workspace, "tiny", cache=folder)
    first = [reader.read(shard, row) for shard in range(card.num_shards) for row in range(6)]
    for path in files_in(folder):
        overwrite(path, 0, path.read_bytes()[::-1])
    again = DatasetReader(workspace, "tiny", cache=folder)
    assert [again.read(shard, row) for shard in range(card.num_shards) for row in range(6)] == first
    assert fetched == ["datasets/tiny/shard-000000.tar", "datasets/tiny/shard-000001.tar"] * 2
