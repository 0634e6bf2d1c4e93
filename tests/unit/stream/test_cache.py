"""Shards from a bucket: fetched once, verified, evicted; a damaged copy is noticed and fetched again."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.base import retry as waiting
from pipeline.base.errors import DamageError, FailedError, StoreAccessError
from pipeline.base.retry import RetryPolicy
from pipeline.base.store import Store, open_store
from pipeline.records.dataset import ShardEntry
from pipeline.stream import cache as cache_module
from pipeline.stream.cache import ArrivedDamagedError, ObjectMissingError, ShardCache
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.disk_lru import PART, NoRoomError
from tests.support.datasets import make_dataset
from tests.support.far import FarStore, cached_shards

NAMES = [f"shard-{number:06d}.tar" for number in range(4)]


@pytest.fixture
def far(tmp_path: Path) -> FarStore:
    """A far workspace with dataset ``tiny``: 40 images in four shards."""
    make_dataset(open_store(str(tmp_path / "far")), "tiny", num_samples=40, size=16, max_samples=10)
    return FarStore(tmp_path / "far")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the cache is."""
    return tmp_path / "cache"


@pytest.fixture
def entries(far: FarStore) -> list[ShardEntry]:
    """The shards of ``tiny``."""
    return DatasetReader(open_store(far.uri), "tiny").shards[:]


def read_all(workspace: Store, folder: Path) -> list[bytes]:
    """Every sample through a new reader."""
    reader = DatasetReader(workspace, "tiny", cache=folder)
    data = [reader.read(shard, row).data for shard in range(4) for row in range(reader.shards[shard].num_samples)]
    reader.close()
    return data


def key_of(entry: ShardEntry) -> str:
    """The key of a shard."""
    return f"datasets/tiny/{entry.name}"


def fetch(cache: ShardCache, entry: ShardEntry) -> bytes:
    """The shard through the cache; nothing stays open."""
    descriptor = cache.open(key_of(entry), entry)
    try:
        return os.pread(descriptor, entry.num_bytes + 1, 0)
    finally:
        os.close(descriptor)


def overwrite(path: Path, at: int, data: bytes) -> None:
    """Change some bytes of a file in place."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_each_shard_and_index_is_fetched_once_for_all_readers(
    far: FarStore, folder: Path, entries: list[ShardEntry]
) -> None:
    near = read_all(open_store(far.uri), folder)
    assert not folder.exists()  # a local workspace is read in place
    assert read_all(far, folder) == near
    assert read_all(far, folder) == near
    assert far.fetched() == NAMES
    assert sorted(far.fetched(".parquet")) == sorted(
        [*(name.replace(".tar", ".parquet") for name in NAMES), "shards.parquet", "shards.parquet"]
    )
    assert [path.stem for path in cached_shards(folder)] == sorted(entry.sha256 for entry in entries)
    left = {path.suffix for path in folder.rglob("*") if path.is_file() and path != folder / "lock"}
    assert left == {".unverified", ".parquet"}  # no parts, no locks


def test_a_fetch_that_breaks_off_goes_on_where_it_was(
    far: FarStore, folder: Path, entries: list[ShardEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, good = key_of(entries[1]), (far.root / key_of(entries[1])).read_bytes()

    def breaking(self: FarStore, key: str, start: int = 0) -> Iterator[bytes]:
        self.asked.append((key, start))
        yield good[start : start + 7000]
        raise FailedError("the answer broke off")

    monkeypatch.setattr(FarStore, "stream", breaking)
    monkeypatch.setattr(waiting, "_FIRST_SECONDS", 0.01)
    assert fetch(ShardCache(far, folder), entries[1]) == good
    assert [start for _, start in far.asked if _ == key] == list(range(0, entries[1].num_bytes, 7000))


def test_damage_on_the_way_is_asked_for_again(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    path = far.root / key_of(entries[2])
    good = path.read_bytes()
    states = iter([good[:700] + b"damage" + good[706:], good])
    far.mood = lambda key: path.write_bytes(next(states))
    assert fetch(ShardCache(far, folder), entries[2]) == good


@pytest.mark.parametrize("damaged", ["flipped", "cut"])
def test_what_arrives_damaged_twice_is_refused_and_not_kept(
    far: FarStore, folder: Path, entries: list[ShardEntry], damaged: str
) -> None:
    path = far.root / key_of(entries[2])
    path.write_bytes(path.read_bytes()[:-1000] if damaged == "cut" else bytes(700) + path.read_bytes()[700:])
    cache = ShardCache(far, folder)
    with pytest.raises(ArrivedDamagedError, match=r"shard-000002\.tar: its bytes are not those that the card names"):
        fetch(cache, entries[2])
    assert far.fetched() == ["shard-000002.tar"] * 2
    assert not [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


def test_of_a_shard_that_is_damaged_in_the_bucket_only_the_damaged_samples_are_lost(
    far: FarStore, folder: Path
) -> None:
    wanted = read_all(far, folder)
    path = far.root / "datasets/tiny/shard-000002.tar"
    overwrite(path, path.read_bytes().index(wanted[25]) + 100, b"damage")
    reader = DatasetReader(far, "tiny", cache=folder.with_name("other"), check="header")  # digests all the same
    for row in range(10):
        if row == 5:
            with pytest.raises(DamageError, match=r"shard-000002\.tar: sample .* its bytes are damaged"):
                reader.read(2, row)
        else:
            assert reader.read(2, row).data == wanted[20 + row]


@pytest.mark.parametrize("size", [0, 1_000])
def test_a_cached_file_of_another_size_is_fetched_again(far: FarStore, folder: Path, size: int) -> None:
    wanted = read_all(far, folder)
    cached = cached_shards(folder)[0]
    cached.write_bytes(cached.read_bytes()[:size])
    assert read_all(far, folder) == wanted
    assert len(far.fetched()) == 5


@pytest.mark.parametrize("part", ["bytes", "header"])
def test_a_damaged_cached_file_of_the_right_size_is_noticed_and_fetched_again(
    far: FarStore, folder: Path, entries: list[ShardEntry], part: str
) -> None:
    wanted = read_all(far, folder)
    reader = DatasetReader(far, "tiny", cache=folder)
    (cached,) = (path for path in cached_shards(folder) if path.stem == entries[2].sha256)
    good = cached.read_bytes()
    for sample in wanted[20:30]:
        overwrite(cached, good.index(sample) + (100 if part == "bytes" else 3 - 512), b"damage")
    for _ in range(2):
        assert [reader.read(2, row).data for row in range(10)] == wanted[20:30]
    assert far.fetched()[4:] == [entries[2].name]  # once for the shard, not once for each sample
    assert cached.with_suffix(".tar").read_bytes() == good  # the second time it was compared as a whole
    assert read_all(far, folder) == wanted
    assert len(far.fetched()) == 5


def test_a_damaged_cached_index_is_fetched_again(far: FarStore, folder: Path) -> None:
    wanted = read_all(far, folder)
    for path in folder.rglob("*.parquet"):
        overwrite(path, 40, b"damage")
    before = len(far.asked)
    assert read_all(far, folder) == wanted
    assert len(far.asked) == before + 2 + 4  # card and table are read by each reader


def test_a_copy_that_is_damaged_like_the_store_is_refused(far: FarStore, folder: Path) -> None:
    wanted = read_all(far, folder)
    reader = DatasetReader(far, "tiny", cache=folder)
    cached = next(path for path in cached_shards(folder) if path.stem == reader.shards[2].sha256)
    at = cached.read_bytes().index(wanted[25]) + 100
    for path in (cached, far.root / key_of(reader.shards[2])):
        overwrite(path, at, b"damage")
    with pytest.raises(DamageError, match=r"shard-000002\.tar"):
        reader.read(2, 5)
    assert reader.read(2, 6).data == wanted[26]


def test_the_least_recently_used_shards_are_evicted(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    cache = ShardCache(far, folder, limit_bytes=entries[0].num_bytes * 3)
    for entry in entries[:3]:
        fetch(cache, entry)
    paths = [folder / entry.sha256[:2] / f"{entry.sha256}.tar" for entry in entries]
    for age, path in enumerate(paths[:3]):
        os.utime(path, (1_000 + age, 1_000 + age))
    fetch(cache, entries[0])  # used again: now shard 1 is the oldest
    fetch(cache, entries[3])
    assert [path.exists() for path in paths] == [True, False, True, True]
    assert far.fetched() == NAMES


def test_a_shard_in_use_goes_last_and_stays_readable(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    cache = ShardCache(far, folder, limit_bytes=entries[0].num_bytes * 2)
    held = cache.open(key_of(entries[0]), entries[0])
    os.utime(held, (1_000, 1_000))  # by its age it would go first
    fetch(cache, entries[1])
    fetch(cache, entries[2])
    assert {path.stem for path in cached_shards(folder)} == {entries[0].sha256, entries[2].sha256}
    small = ShardCache(far, folder, limit_bytes=1)
    fetch(small, entries[3])
    assert [path.stem for path in cached_shards(folder)] == [entries[3].sha256]
    assert os.pread(held, entries[0].num_bytes, 0) == (far.root / key_of(entries[0])).read_bytes()
    os.close(held)


def test_the_limit_holds_after_every_fetch(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    limit = entries[0].num_bytes * 2
    cache = ShardCache(far, folder, limit_bytes=limit)
    for entry in entries * 2:
        fetch(cache, entry)
        cache.read_index(key_of(entry).replace(".tar", ".parquet"), entry.index_sha256)
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= limit


def test_a_shard_larger_than_the_limit_is_still_served(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    cache = ShardCache(far, folder, limit_bytes=1)
    for entry in entries:
        assert len(fetch(cache, entry)) == entry.num_bytes
        assert len(cached_shards(folder)) == 1


def test_two_datasets_share_a_folder_without_cross_talk(tmp_path: Path, folder: Path) -> None:
    """Shards of the same name, different bytes."""
    contents = []
    for seed in range(2):
        make_dataset(open_store(str(tmp_path / str(seed))), "tiny", num_samples=40, size=16, max_samples=10, seed=seed)
        contents.append(read_all(FarStore(tmp_path / str(seed)), folder))
    assert contents[0] != contents[1]
    assert [read_all(FarStore(tmp_path / str(seed)), folder) for seed in range(2)] == contents
    assert len(cached_shards(folder)) == 8


def test_a_fetch_that_fails_leaves_nothing(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    def refuse(key: str) -> None:
        raise FailedError(f"{key}: the answer broke off")

    far.mood = refuse
    with pytest.raises(FailedError, match="shard-000000"):
        fetch(ShardCache(far, folder, retry=RetryPolicy(0)), entries[0])
    assert not [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    far.mood = None
    assert len(fetch(ShardCache(far, folder), entries[0])) == entries[0].num_bytes


def test_a_store_that_is_away_is_waited_for_and_that_is_told(
    far: FarStore, folder: Path, entries: list[ShardEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MESSAGE_SECONDS", 0.05)
    back, told = threading.Event(), []

    def away(key: str) -> None:
        if not back.is_set():
            raise StoreAccessError(f"{key}: no answer")

    def tell(text: str) -> None:
        told.append(text)
        if len(told) == 3:
            back.set()

    far.mood = away
    assert len(fetch(ShardCache(far, folder, retry=RetryPolicy(60, tell)), entries[1])) == entries[1].num_bytes
    assert told[0] == f"waiting for {far.uri}/datasets/tiny/shard-000001.tar for 0 s"


def test_a_request_that_hangs_is_told_as_well(
    far: FarStore, folder: Path, entries: list[ShardEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MESSAGE_SECONDS", 0.05)
    monkeypatch.setattr(waiting, "_STOP_SECONDS", 0.02)
    back = threading.Event()
    far.mood = lambda key: back.wait(30)
    patience = RetryPolicy(60, lambda text: back.set())
    assert len(fetch(ShardCache(far, folder, retry=patience), entries[1])) == entries[1].num_bytes


def test_patience_ends_with_the_error(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    def away(key: str) -> None:
        raise StoreAccessError(f"{key}: no answer")

    far.mood = away
    with pytest.raises(StoreAccessError, match=r"shard-000001\.tar: no answer"):
        fetch(ShardCache(far, folder, retry=RetryPolicy(0.3)), entries[1])
    assert len(far.asked) > 1


def test_what_does_not_pass_is_not_waited_for(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    far.delete(key_of(entries[1]))
    with pytest.raises(ObjectMissingError, match=r"shard-000001\.tar is missing"):
        fetch(ShardCache(far, folder, retry=RetryPolicy(3600)), entries[1])
    assert len(far.asked) == 1


def test_the_folder_is_ours_alone(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    old = os.umask(0)
    try:
        fetch(ShardCache(far, folder), entries[0])
    finally:
        os.umask(old)
    for path in [folder, *folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_folder_that_others_can_write_is_refused(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StoreAccessError, match="can be written by other users") as caught:
        fetch(ShardCache(far, folder), entries[0])
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
@pytest.mark.parametrize("is_link", [False, True])
def test_a_folder_of_another_user_is_refused(
    far: FarStore, folder: Path, entries: list[ShardEntry], is_link: bool
) -> None:
    if is_link:
        folder.with_name("elsewhere").mkdir()
        folder.symlink_to(folder.with_name("elsewhere"))
        os.chown(folder, 12345, -1, follow_symlinks=False)
    else:
        folder.mkdir()
        os.chown(folder, 12345, -1)
    with pytest.raises(StoreAccessError, match=f"{folder} belongs to another user"):
        fetch(ShardCache(far, folder), entries[0])


def test_a_file_in_place_of_the_folder_is_told(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    folder.write_text("")
    with pytest.raises(StoreAccessError, match=f"cache {folder}: File exists"):
        fetch(ShardCache(far, folder), entries[0])


def test_a_folder_that_is_removed_meanwhile_is_made_again(
    far: FarStore, folder: Path, entries: list[ShardEntry]
) -> None:
    cache = ShardCache(far, folder)
    fetch(cache, entries[0])
    far.mood = lambda key: shutil.rmtree(folder) if len(far.asked) == 2 else None
    assert len(fetch(cache, entries[1])) == entries[1].num_bytes
    assert far.fetched() == [NAMES[0], NAMES[1], NAMES[1]]


def test_leftovers_of_killed_fetchers_are_swept(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    cache = ShardCache(far, folder)
    fetch(cache, entries[0])
    below = cached_shards(folder)[0].parent
    left, live, lock = below / f"{PART}left", below / f"{PART}live", below / f"{'0' * 64}.lock"
    for path in (left, live, lock):
        path.write_bytes(b"x" * 100)
    with live.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fetch(cache, entries[1])
    assert [path.exists() for path in (left, live, lock)] == [False, True, False]


FETCHER = """
import os, sys
from pathlib import Path
from pipeline.stream.cache import ShardCache
from pipeline.stream.dataset import DatasetReader
from tests.support.far import cached_shards, FarStore

far, folder, shard = FarStore(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
entry = DatasetReader(far, "tiny").shards[shard]

def mood(key):
    if key.endswith(".tar"):
        print("asked", flush=True)
        sys.stdin.readline()

far.mood = mood
os.close(ShardCache(far, folder).open(f"datasets/tiny/{entry.name}", entry))
print("done", flush=True)
"""


@pytest.fixture
def fetcher(far: FarStore, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is in the middle of fetching shard 1, and goes on when it is told to."""
    command = [sys.executable, "-c", FETCHER, str(far.root), str(folder), "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "asked\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_shard_that_another_process_fetches_is_waited_for(
    far: FarStore, folder: Path, entries: list[ShardEntry], fetcher: subprocess.Popen[str]
) -> None:
    assert ShardCache(far, folder).open_unless_fetched(key_of(entries[1]), entries[1]) is None
    polls = itertools.count()

    class Released(RetryPolicy):
        def start(self, label: str, on_alive=lambda: None, permanent=()):  # type: ignore[no-untyped-def]
            assert "which another process fetches" in label
            if next(polls) == 0:
                fetcher.stdin.write("\n")  # type: ignore[union-attr]
                fetcher.stdin.flush()  # type: ignore[union-attr]
            return super().start(label, on_alive, permanent)

    assert len(fetch(ShardCache(far, folder, retry=Released()), entries[1])) == entries[1].num_bytes
    assert far.fetched() == []
    assert next(polls) == 1


def test_a_lock_that_its_holder_has_just_removed_is_no_lock(
    far: FarStore, folder: Path, entries: list[ShardEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our opening of the lock and our taking it, another process fetched the shard and was done."""
    original, lock = fcntl.flock, folder / entries[1].sha256[:2] / f"{entries[1].sha256}.lock"

    def late(descriptor: int, operation: int) -> None:
        lock.unlink(missing_ok=True)
        original(descriptor, operation)

    cache = ShardCache(far, folder)
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", late)
        assert cache.open_unless_fetched(key_of(entries[1]), entries[1]) is None
    assert far.fetched() == []
    assert len(fetch(cache, entries[1])) == entries[1].num_bytes


def test_a_killed_fetcher_is_succeeded(
    far: FarStore, folder: Path, entries: list[ShardEntry], fetcher: subprocess.Popen[str]
) -> None:
    fetcher.kill()
    fetcher.wait()
    assert len(fetch(ShardCache(far, folder), entries[1])) == entries[1].num_bytes
    assert not [path for path in folder.rglob("*") if path.name.startswith(PART) or path.suffix == ".lock"]


def test_a_stopped_fetcher_is_passed_by_and_harms_nothing_when_it_wakes(
    far: FarStore,
    folder: Path,
    entries: list[ShardEntry],
    fetcher: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_module, "_DEAD_SECONDS", 0.2)
    fetcher.send_signal(signal.SIGSTOP)
    cache = ShardCache(far, folder)
    descriptor = cache.open(key_of(entries[1]), entries[1])
    assert far.fetched() == [entries[1].name]
    fetcher.send_signal(signal.SIGCONT)
    out, _ = fetcher.communicate("\n", timeout=30)
    assert (out, fetcher.returncode) == ("done\n", 0)
    wanted = (far.root / key_of(entries[1])).read_bytes()
    assert os.pread(descriptor, entries[1].num_bytes, 0) == wanted == fetch(cache, entries[1])
    os.close(descriptor)


def test_a_full_disk_evicts_and_then_says_so(
    far: FarStore, folder: Path, entries: list[ShardEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC is injected here; the fault tests have a real full disk."""
    cache = ShardCache(far, folder)
    fetch(cache, entries[0])
    full = itertools.count()
    original = os.posix_fallocate

    def once_full(descriptor: int, offset: int, length: int) -> None:
        if next(full) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", once_full)
    fetch(cache, entries[1])
    assert [path.stem for path in cached_shards(folder)] == [entries[1].sha256]

    def always_full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", always_full)
    with pytest.raises(NoRoomError, match=f"cache {folder}: the disk is full, no room for .* - make room there"):
        fetch(cache, entries[2])
    assert cached_shards(folder) == []


def test_a_file_system_without_fallocate_will_do(
    far: FarStore, folder: Path, entries: list[ShardEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_offered(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", not_offered)
    assert fetch(ShardCache(far, folder), entries[0]) == (far.root / key_of(entries[0])).read_bytes()


def suffixes(folder: Path) -> list[str]:
    return sorted(path.suffix for path in cached_shards(folder))


def test_unverified_shards_are_for_those_who_compare_samples(
    far: FarStore, folder: Path, entries: list[ShardEntry]
) -> None:
    trusting = ShardCache(far, folder, verifies=False)
    fetch(trusting, entries[0])
    assert suffixes(folder) == [".unverified"]
    good = (far.root / key_of(entries[0])).read_bytes()
    assert fetch(ShardCache(far, folder), entries[0]) == good
    assert suffixes(folder) == [".tar"]
    assert fetch(trusting, entries[0]) == good
    assert far.fetched() == [entries[0].name]  # once for both


def test_a_damaged_unverified_shard_is_fetched_again_for_who_wants_it_verified(
    far: FarStore, folder: Path, entries: list[ShardEntry]
) -> None:
    fetch(ShardCache(far, folder, verifies=False), entries[0])
    (file,) = cached_shards(folder)
    data = bytearray(file.read_bytes())
    data[700] ^= 1
    file.write_bytes(data)
    assert fetch(ShardCache(far, folder), entries[0]) == (far.root / key_of(entries[0])).read_bytes()
    assert suffixes(folder) == [".tar"]


def test_an_unverified_shard_has_the_size_of_its_card(far: FarStore, folder: Path, entries: list[ShardEntry]) -> None:
    path = far.root / key_of(entries[0])
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(ArrivedDamagedError):
        fetch(ShardCache(far, folder, verifies=False), entries[0])
    assert cached_shards(folder) == []
