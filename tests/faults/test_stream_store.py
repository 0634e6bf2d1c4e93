"""Reading a dataset from a real S3 server while cache, disk and server fail: the same bytes, or one clear line."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from infra.local import s3_server as local_s3
from infra.local.s3_server import LocalS3
from pipeline.base import retry as waiting
from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.base.retry import RetryPolicy
from pipeline.base.store import Store, open_store
from pipeline.base.store.s3 import S3Store
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.disk_lru import NoRoomError
from pipeline.stream.mixture import Mixture
from pipeline.stream.order import Order
from pipeline.stream.prefetch import Prefetcher
from tests.support.datasets import make_dataset
from tests.support.far import cached_shards
from tests.support.proxy import Asked, FaultyProxy

SEED = 4177
SHARDS, ROWS = 8, 12

# Reads every sample twice, the shards in an order of its own; prints what it has read.
READER = """
import random, sys
from pathlib import Path
from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.store import open_store
from pipeline.stream.dataset import DatasetReader

uri, folder, seed = sys.argv[1:]
reader = DatasetReader(open_store(uri), "tiny", cache=Path(folder), open_shards=2)
print("ready", flush=True)
sys.stdin.readline()
digests = {}
for epoch in range(2):
    places = [(shard, row) for shard in range(len(reader.shards)) for row in range(reader.shards[shard].num_samples)]
    shards = list(range(len(reader.shards)))
    random.Random(f"{seed} {epoch}").shuffle(shards)
    for shard, row in sorted(places, key=lambda place: shards.index(place[0])):
        found = sha256_hex(reader.read(shard, row).data)
        assert digests.setdefault(f"{shard} {row}", found) == found
print(fingerprint(digests), flush=True)
"""


def make(uri: str, seed: int = 0) -> Store:
    """Dataset ``tiny`` at *uri*."""
    store = open_store(uri)
    make_dataset(store, "tiny", num_samples=SHARDS * ROWS, size=40, max_samples=ROWS, seed=seed)
    return store


def content(store: Store, **settings: object) -> str:
    """What READER prints."""
    reader = DatasetReader(store, "tiny", **settings)  # type: ignore[arg-type]
    found = {
        f"{shard} {row}": sha256_hex(reader.read(shard, row).data)
        for shard in range(len(reader.shards))
        for row in range(reader.shards[shard].num_samples)
    }
    reader.close()
    return fingerprint(found)


@pytest.fixture
def wanted(tmp_path: Path) -> str:
    """What is in ``tiny``, read from a folder."""
    return content(make(str(tmp_path / "local")))


def together(commands: list[tuple[str, Path]], environment: dict[str, str]) -> list[str]:
    """What READERs of (uri, cache) print that begin at the same time."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", READER, uri, str(folder), str(SEED + number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        for number, (uri, folder) in enumerate(commands)
    ]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        return [process.communicate(timeout=60)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def is_shard(asked: Asked) -> bool:
    """A GET of a tar."""
    return asked.method == "GET" and asked.key.endswith(".tar")


def is_index(asked: Asked) -> bool:
    """A GET of an index."""
    return asked.method == "GET" and asked.key.endswith(".parquet") and "shard-" in asked.key


def test_a_node_asks_for_each_shard_once_however_many_processes_read_it(
    s3_server: LocalS3, s3_workspace: str, tmp_path: Path, wanted: str
) -> None:
    """A shard fits in one piece, so one request is one fetch. Two epochs, four processes, one cache."""
    make(s3_workspace)
    with FaultyProxy(s3_server.endpoint, SEED) as proxy:
        found = together([(s3_workspace, tmp_path / "cache")] * 4, {"AWS_ENDPOINT_URL": proxy.endpoint})
        assert found == [wanted] * 4
        asked = sorted(item.key for item in proxy.seen if is_shard(item))
        prefix = s3_workspace.split("/")[3]
        assert asked == [f"{prefix}/datasets/tiny/shard-{number:06d}.tar" for number in range(SHARDS)]
        assert SHARDS <= proxy.count(is_index) <= 4 * SHARDS  # small, and not worth a lock


def test_read_ahead_and_reading_ask_for_each_shard_once(
    s3_server: LocalS3, s3_workspace: str, tmp_path: Path, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(s3_workspace)
    with FaultyProxy(s3_server.endpoint, SEED) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        reader = DatasetReader(open_store(s3_workspace), "tiny", cache=tmp_path / "cache")
        order = Order(reader.shards.sizes.tolist(), reader.card.digest, seed=0, partitions=2, window=6)
        mixture, found = Mixture([order]), {}
        ahead = Prefetcher([reader], mixture, [0, 1], 0, shards=4, share_bytes=10**9)
        try:
            for position in range(SHARDS * ROWS):
                ahead.advance(position)
                ref = order.ref(position)
                found[f"{ref.shard} {ref.row}"] = sha256_hex(reader.read(ref.shard, ref.row).data)
        finally:
            ahead.close()
        assert fingerprint(found) == wanted
        assert proxy.count(is_shard) == SHARDS


@pytest.mark.parametrize("damage", ["flipped", "cut", "another shard's"])
def test_a_cached_shard_is_damaged(
    s3_server: LocalS3, s3_workspace: str, tmp_path: Path, wanted: str, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    make(s3_workspace)
    with FaultyProxy(s3_server.endpoint, SEED) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert content(open_store(s3_workspace), cache=tmp_path / "cache") == wanted
        rng = random.Random(SEED)
        files = cached_shards(tmp_path / "cache")
        others = [path.read_bytes() for path in files[1:] + files[:1]]
        for path, other in zip(files, others, strict=True):
            data = bytearray(path.read_bytes())
            if damage == "flipped":
                for at in rng.sample(range(len(data) // 2), 200):  # the half that has the samples
                    data[at] ^= 1 << rng.randrange(8)
            path.write_bytes({"flipped": data, "cut": data[: len(data) // 2], "another shard's": other}[damage])
        assert content(open_store(s3_workspace), cache=tmp_path / "cache") == wanted, f"seed {SEED}"
        assert proxy.count(is_shard) == 2 * SHARDS
        assert content(open_store(s3_workspace), cache=tmp_path / "cache") == wanted
        assert proxy.count(is_shard) == 2 * SHARDS


def test_damage_on_the_way_is_asked_for_again(
    s3_server: LocalS3, s3_workspace: str, tmp_path: Path, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(s3_workspace)
    with FaultyProxy(s3_server.endpoint, SEED) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for kind in ("flip", "cut", "reset", "503"):
            proxy.inject(kind, 2, is_shard)  # type: ignore[arg-type]
        assert content(open_store(s3_workspace), cache=tmp_path / "cache") == wanted, f"seed {SEED}"
        assert proxy.pending == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of a megabyte; the shards of ``tiny`` have about 80 kB each."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_disk_of_the_cache_is_full(s3_workspace: str, small_disk: Path, wanted: str) -> None:
    store, folder = make(s3_workspace), small_disk / "cache"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_000_000 - 250_000))  # room for three shards of eight, all of which one reader has open
    assert content(store, cache=folder) == wanted
    shutil.rmtree(folder)
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with pytest.raises(NoRoomError) as caught:
        content(store, cache=folder)
    told = str(caught.value)
    assert f"cache {folder}: the disk is full, no room for" in told
    assert "make room there or lower stream.cache_bytes, or set TMPDIR" in told
    assert "\n" not in told
    assert not list(folder.rglob(".part-*"))
    filler.unlink()
    assert content(store, cache=folder) == wanted


@pytest.mark.long
def test_two_runs_share_a_cache_and_their_datasets_have_equal_shard_names(
    s3_server: LocalS3, s3_workspace: str, tmp_path: Path
) -> None:
    uris = [f"{s3_workspace}/{name}" for name in ("first", "second")]
    wanted = [content(make(str(tmp_path / str(seed)), seed)) for seed in range(2)]
    for seed, uri in enumerate(uris):
        make(uri, seed)
    assert wanted[0] != wanted[1]
    found = together([(uri, tmp_path / "cache") for uri in uris * 2], s3_server.environment())
    assert found == wanted * 2
    assert len(cached_shards(tmp_path / "cache")) == 2 * SHARDS


class Reading:
    """Reads ``tiny`` in a thread, and tells where it is."""

    def __init__(self, store: Store, folder: Path, access: str, patience: RetryPolicy) -> None:
        self.result = ""
        self.error: Exception | None = None
        self.begun = threading.Event()
        self._go_on = threading.Event()
        reader = DatasetReader(store, "tiny", cache=folder, access=access, retry=patience)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._run, args=(reader,))
        self._thread.start()

    def end(self, seconds: float = 100.0) -> None:
        """Let it go on behind the third shard, and wait for its end."""
        self._go_on.set()
        self._thread.join(seconds)
        assert not self._thread.is_alive()

    def go_on(self) -> None:
        """Let it go on."""
        self._go_on.set()

    def _run(self, reader: DatasetReader) -> None:
        found = {}
        try:
            for shard in range(SHARDS):
                for row in range(ROWS):
                    found[f"{shard} {row}"] = sha256_hex(reader.read(shard, row).data)
                if shard == 2:
                    self.begun.set()
                    self._go_on.wait(100)
            self.result = fingerprint(found)
        except Exception as error:
            self.error = error
        finally:
            self.begun.set()
            reader.close()


def bucket_of(server: LocalS3) -> Store:
    """Dataset ``tiny`` in a new bucket of *server*."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    S3Store(bucket, "").create_bucket()
    return make(f"s3://{bucket}/prefix")


@pytest.mark.parametrize("access", ["cached", "ranged"])
def test_the_server_stands_still_for_a_while(
    server: LocalS3, tmp_path: Path, wanted: str, access: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MESSAGE_SECONDS", 0.5)
    store, told, twice = bucket_of(server), [], threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        if len(told) == 2:
            twice.set()

    reading = Reading(store, tmp_path / "cache", access, RetryPolicy(100, tell))
    assert reading.begun.wait(60)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        reading.go_on()
        assert twice.wait(60)
        assert told[0].startswith(f"waiting for {store.uri}/datasets/tiny/shard-000003.")
        assert told[0].endswith(" s")
    finally:
        os.kill(server.pid, signal.SIGCONT)
    reading.end()
    assert (reading.error, reading.result) == (None, wanted)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seconds", [1, pytest.param(120, marks=pytest.mark.long)])
def test_the_server_is_gone_for_a_while(
    server: LocalS3, tmp_path: Path, wanted: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    store = bucket_of(server)
    reading = Reading(store, tmp_path / "cache", "cached", RetryPolicy(600, told.append))
    assert reading.begun.wait(60)
    ports = [*server._ports.values()]
    server.stop()
    reading.go_on()
    time.sleep(seconds)  # this long it is away: the length is the fault
    monkeypatch.setattr(local_s3, "free_ports", lambda count: ports)
    server.start()
    reading.end(200)
    assert (reading.error, reading.result) == (None, wanted)
    assert len(told) >= seconds // 10


def test_patience_ends_with_the_error_of_the_store(server: LocalS3, tmp_path: Path) -> None:
    store = bucket_of(server)
    reading = Reading(store, tmp_path / "cache", "cached", RetryPolicy(1))
    assert reading.begun.wait(60)
    server.stop()
    reading.end()
    assert isinstance(reading.error, (StoreAccessError, FailedError))
    assert "shard-000003" in str(reading.error)
    assert "\n" not in str(reading.error)
