"""``vitpipe gc`` finds what killed work left, tells it, removes it; and nothing else, ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.gc import run_gc as gc
from jobs.gc import summary
from pipeline.base.process_identity import ProcessIdentity
from pipeline.base.store import Store, open_store
from pipeline.base.store.local import LocalStore
from pipeline.records.dataset import WORK, dataset_prefix
from pipeline.records.run import list_steps, step_prefix
from pipeline.shard.commit import LEASE_KEY, DatasetFingerprint, ShardLease, take_lease
from tests.support.command import vitpipe
from tests.support.datasets import make_dataset
from tests.support.faults import content
from tests.support.states import RUN, new_saving, save_steps

DAY = 86_400.0
HERE = ProcessIdentity.current().place_text
MINE = DatasetFingerprint(recipe={"max_samples": 3}, listing_digest="l", fingerprint="f")


class Silent:
    """Progress that nobody sees."""

    def start(self, label: str, total: int | None = None) -> None:
        """See Progress."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """See Progress."""

    def finish(self, note: str = "") -> None:
        """See Progress."""

    def message(self, text: str) -> None:
        """See Progress."""


def dead_pid() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def fill(store: Store) -> dict[str, str]:
    """A workspace in order; what it holds."""
    save_steps(new_saving(store), 0, 10)
    make_dataset(store, "whole", num_samples=4)
    store.put("features/a/part-00000.safetensors", b"a")
    store.put("features/a/features.json", b"{}")
    store.put("evaluations/e/claim-1.json", b"{}")
    store.put("elsewhere/part-00000.safetensors", b"not ours")
    store.put("datasets/theirs/train-0000.tar", b"put there by somebody, never ours")
    store.put("corpora/digits/train.parquet", b"embedded")
    for name in ("request.json", "data/0.jpg", "manifest.json"):
        store.put(f"corpora/staged/{name}", b"{}")
    return {info.key: store.read(info.key).hex() for info in store.list()}


def litter(store: Store) -> set[str]:
    """What is left of killed work; its keys."""
    lost = f"{step_prefix(RUN, 20)}/0001/rank-00000.safetensors"
    store.put(lost, b"12345")
    new_saving(store)
    begun = f"{dataset_prefix('begun')}/{LEASE_KEY}"
    store.put(begun, ShardLease(**MINE.model_dump(), place=HERE, pid=dead_pid()).to_json())
    names = ("shard-000000.tar", "shard-000000.parquet", f"{WORK}/made-000000")
    given_up = {f"{dataset_prefix('old')}/{name}" for name in names}
    shared = f"{dataset_prefix('split')}/{WORK}/scan/000000.images"  # of a split whose parts nobody makes any more
    swept = f"{dataset_prefix('whole')}/{WORK}/plan-0123.bin"
    staged = {f"corpora/half/{name}" for name in ("request.json", "data/a/0.jpg", ".staging-0123-00000000.arrow")}
    plain = {
        *given_up,
        shared,
        swept,
        *staged,
        "features/b/part-00000.safetensors",
        f"imported/{'a' * 64}/model.safetensors",
        f"evaluations/{'b' * 64}/tuning-0123.safetensors",
    }
    for key in plain:
        store.put(key, b"123")
    return {lost, begun, *plain}


def age(store: LocalStore, seconds: float) -> None:
    """Let everything be older."""
    for path in store.root.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


def test_a_workspace_in_order_stays_as_it_is(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    before = fill(store)
    age(store, 10 * DAY)
    result = gc(store, DAY, False, Silent())
    assert not any(result["found"].values())
    assert (result["unfinished_writes"], result["bytes"], result["problems"]) == (0, 0, [])
    assert {info.key: store.read(info.key).hex() for info in store.list()} == before


def test_leftovers_are_told_and_then_removed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store)
    left = litter(store)
    (tmp_path / "runs" / RUN / ".tmp-0123").write_bytes(b"half")
    (tmp_path / "elsewhere" / ".tmp-0123").write_bytes(b"not ours")
    age(store, 2 * DAY)
    before = content(tmp_path)
    told = gc(store, DAY, True, Silent())
    assert content(tmp_path) == before
    assert {row["key"] for rows in told["found"].values() for row in rows} == left
    assert told["unfinished_writes"] == 1
    assert told["bytes"] == sum(row["num_bytes"] for rows in told["found"].values() for row in rows) > 8
    assert summary(told).startswith(f"would remove {len(left)} objects (")
    done = gc(store, DAY, False, Silent())
    assert done["found"] == told["found"]
    gone = set(before) - set(content(tmp_path))
    assert gone == left | {f"runs/{RUN}/.tmp-0123"}
    assert list_steps(store, RUN) == [0, 10]
    assert not any(gc(store, DAY, False, Silent())["found"].values())


def test_what_is_young_may_be_somebodys(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store)
    litter(store)
    store.put(
        f"{dataset_prefix('elsewhere')}/{LEASE_KEY}", ShardLease(**MINE.model_dump(), place="another", pid=1).to_json()
    )
    store.put(
        f"{dataset_prefix('here')}/{LEASE_KEY}",
        ShardLease(**MINE.model_dump(), place=HERE, pid=os.getpid()).to_json(),
    )
    store.put(f"{dataset_prefix('older')}/{LEASE_KEY}", MINE.to_json())
    found = gc(store, DAY, True, Silent())["found"]
    assert not found["features"]
    assert [row["key"] for row in found["datasets"]] == [f"{dataset_prefix('begun')}/{LEASE_KEY}"]
    assert not found["corpora"]
    age(store, 2 * DAY)
    found = gc(store, DAY, True, Silent())["found"]
    names = {row["key"].split("/")[1] for row in found["datasets"]}
    assert names == {"begun", "elsewhere", "older", "old", "split", "whole"}  # what is made here is alive
    assert {row["key"] for row in found["datasets"] if "/whole/" in row["key"]} == {
        f"{dataset_prefix('whole')}/{WORK}/plan-0123.bin"
    }


@pytest.mark.parametrize("alive", [True, False])
def test_what_the_parts_of_a_split_share_stays_while_one_is_made(tmp_path: Path, alive: bool) -> None:
    """By a process that is known to live here, or by somebody elsewhere who wrote a moment ago."""
    store = LocalStore(tmp_path)
    for name in ("split", "split-train", "splitting"):
        store.put(f"{dataset_prefix(name)}/{WORK}/old", b"123")
    age(store, 2 * DAY)
    place, pid = (HERE, os.getpid()) if alive else ("another", 1)
    store.put(
        f"{dataset_prefix('split-train')}/{LEASE_KEY}", ShardLease(**MINE.model_dump(), place=place, pid=pid).to_json()
    )
    if alive:
        age(store, 2 * DAY)
    found = gc(store, DAY, True, Silent())["found"]["datasets"]
    assert [row["key"] for row in found] == [f"{dataset_prefix('splitting')}/{WORK}/old"]


def test_a_card_that_cannot_be_read_is_a_problem_and_its_run_stays(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store)
    litter(store)
    store.put(f"{step_prefix(RUN, 10)}/checkpoint.json", b"{")
    ended = vitpipe("gc", tmp_path, "--json")
    assert ended.returncode == 1
    result = json.loads(ended.stdout)
    assert result["found"]["checkpoints"] == []
    assert "run r is left alone" in result["problems"][0]
    assert "run r is left alone" in ended.stderr
    assert store.head(f"{step_prefix(RUN, 20)}/0001/rank-00000.safetensors") is not None


def test_the_command_tells_and_removes(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store)
    litter(store)
    ended = vitpipe("gc", "--workspace", tmp_path, "--dry-run", "--older-than", "0")
    assert ended.returncode == 0, ended.stderr
    assert "would remove 13 objects" in ended.stdout
    for why in (
        "their features.json never came",
        "no name and no result",
        "no suite asks for",
        "its manifest.json never came",
        "its dataset.json never came",
    ):
        assert why in " ".join(ended.stdout.split())
    ended = vitpipe("gc", tmp_path, "--older-than", "0", "--json")
    assert sorted(len(rows) for rows in json.loads(ended.stdout)["found"].values()) == [1, 1, 1, 1, 3, 6]
    assert "would" not in ended.stderr
    ended = vitpipe("gc", tmp_path, "--older-than", "0")
    assert "removed 0 objects (0 B) and 0 unfinished writes" in ended.stdout


def test_on_a_bucket(s3_workspace: str) -> None:
    store = open_store(s3_workspace)
    fill(store)
    left = litter(store)
    parts = store.multipart("runs/r/unfinished", 5 << 20)
    parts.put_part(0, b"x")
    assert not gc(store, DAY, True, Silent())["found"]["features"]
    told = gc(store, -60.0, True, Silent())
    assert {row["key"] for rows in told["found"].values() for row in rows} == left
    assert told["unfinished_writes"] == 1
    gc(store, -60.0, False, Silent())
    assert not left & {info.key for info in store.list()}
    again = gc(store, -60.0, True, Silent())
    assert (again["unfinished_writes"], again["bytes"]) == (0, 0)


def test_who_goes_on_takes_the_claim_over(tmp_path: Path) -> None:
    target = LocalStore(tmp_path / "datasets" / "d")
    target.put(LEASE_KEY, ShardLease(**MINE.model_dump(), place=HERE, pid=dead_pid()).to_json())
    workspace = LocalStore(tmp_path)
    assert gc(workspace, DAY, True, Silent())["found"]["datasets"]
    take_lease(target, MINE)
    assert not gc(workspace, DAY, True, Silent())["found"]["datasets"]


@pytest.mark.parametrize(("place", "gone"), [("", False), ("another host", False)])
def test_of_another_place_nothing_is_known(place: str, gone: bool) -> None:
    assert ProcessIdentity.from_place(place, dead_pid()).is_gone() == gone
    assert ProcessIdentity.from_place(HERE, dead_pid()).is_gone()
    assert not ProcessIdentity.from_place(HERE, os.getpid()).is_gone()
    assert not ProcessIdentity.from_place(HERE, 1).is_gone()
