"""``vitpipe stream``: what bench measures and names, what audit proves, and what both refuse."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from pipeline.base.store import Store, open_store
from pipeline.base.world import World
from pipeline.records.run import OrderParameters, RunCard
from pipeline.stream.audit import AuditLog
from pipeline.stream.benchmark import bottleneck
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.loader import StreamLoader
from pipeline.stream.profiling import StageTime
from pipeline.stream.recipe import StreamRecipe
from tests.support.damage import flip
from tests.support.datasets import make_dataset

SETTINGS = ("batch_size=16", "partitions=4", "window=10", "augment.size=8", "workers=2")
QUICK = ("--seconds", "0.05")


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


Vitpipe = Callable[..., Said]


@pytest.fixture
def vitpipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Vitpipe:
    """Calls ``vitpipe stream`` in a folder that has the workspace ``ws``."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["vitpipe", "stream", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Said(caught.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def workspace(tmp_path: Path) -> Store:
    """Dataset ``tiny`` of 40 images in four shards."""
    store = open_store(str(tmp_path / "ws"))
    make_dataset(store, "tiny", num_samples=40, size=12, max_samples=10)
    return store


def benched(said: Said) -> dict[str, Any]:
    assert said.code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


def test_bench_measures_every_stage_and_the_loader(vitpipe: Vitpipe, workspace: Store) -> None:
    before = sorted(info.key for info in workspace.list(""))
    found = benched(vitpipe("bench", "tiny", *SETTINGS, "-w", "ws", *QUICK, "--json"))
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert list(stages) == ["order", "read", "decode", "augment", "collate", "hand-over", "wait"]
    assert all(stage["samples_per_second"] > 0 for stage in stages.values())
    assert stages["read"]["bytes_per_second"] > 0
    assert [one["workers"] for one in found["loader"]] == [0, 2]
    assert all(one["samples_per_second"] > 0 for one in found["loader"])
    assert found["bottleneck"]["stage"] in stages
    assert found["bottleneck"]["told"].startswith(f"{found['bottleneck']['stage']} limits the stream: ")
    assert found["recipe"]["augment"]["size"] == 8
    assert (found["world_size"], found["batch_of_a_rank"]) == (4, 4)
    assert sorted(info.key for info in workspace.list("")) == before


def test_bench_tells_how_well_the_order_shuffles(vitpipe: Vitpipe, workspace: Store) -> None:
    found = benched(vitpipe("bench", "tiny", *SETTINGS, "window=2", "-w", "ws", *QUICK, "--json"))
    qualities = found["shuffle"]
    assert [(one["window"], one["is_chosen"]) for one in qualities] == [(2, True), (10, False)]
    assert qualities[0]["neighbour_distance"] < qualities[1]["neighbour_distance"]


def test_bench_for_people_ends_with_the_bottleneck(vitpipe: Vitpipe, workspace: Store) -> None:
    said = vitpipe("bench", "tiny", *SETTINGS, "-w", "ws", *QUICK, "--world-size", "1")
    assert said.code == 0, said.err
    for part in ("one rank of 1, 16 samples of each batch", "hand-over", "10 (chosen)", "by chance 4"):
        assert part in said.out, part
    assert " limits the stream: " in said.out.splitlines()[-1]
    assert "Traceback" not in said.err


@pytest.mark.parametrize("access", ["cached", "ranged"])
def test_bench_from_a_bucket_measures_fetching_into_an_empty_cache(
    vitpipe: Vitpipe, s3_workspace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    make_dataset(open_store(s3_workspace), "tiny", num_samples=40, size=12, max_samples=10)
    found = benched(vitpipe("bench", "tiny", *SETTINGS, f"access={access}", "-w", s3_workspace, *QUICK, "--json"))
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert ("fetch" in stages) == (access == "cached")
    assert stages["read"]["samples_per_second"] > 0
    if access == "cached":
        assert stages["fetch"]["bytes_per_second"] > stages["fetch"]["samples_per_second"] > 0
    assert not list(tmp_path.glob("vitpipe-*"))  # what was fetched is gone


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("bench", "tinny"), "no dataset 'tinny'"),
        (("bench", "tiny", "batchsize=4"), "batch_size"),
        (("bench", "tiny", "batch_size=12", "partitions=8"), "partitions 8 does not divide batch_size 12"),
        (("bench", "tiny", *SETTINGS, "--world-size", "3"), "world sizes that work: 1, 2, 4"),
        (("bench", "tiny", "augment.size=0"), "augment.size"),
        (("bench", "tiny", "workers"), "key.sub=value"),
        (("audit", "missing"), "no run 'missing'"),
    ],
)
def test_what_cannot_be_meant_is_told_with_exit_2(
    vitpipe: Vitpipe, workspace: Store, arguments: tuple[str, ...], part: str
) -> None:
    said = vitpipe(*arguments, "-w", "ws")
    assert (said.code, said.out) == (2, ""), said
    assert part in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("arguments", [("bench",), ("audit",), ("bench", "tiny", "--seconds", "0"), ("paint", "x")])
def test_usage_errors(vitpipe: Vitpipe, arguments: tuple[str, ...]) -> None:
    assert vitpipe(*arguments, "-w", "ws").code == 2


def test_bench_names_a_damaged_sample(vitpipe: Vitpipe, workspace: Store) -> None:
    for number in range(4):
        flip(workspace, f"datasets/tiny/shard-{number:06d}.tar", 1_536)
    said = vitpipe("bench", "tiny", *SETTINGS, "-w", "ws", *QUICK)
    assert said.code == 1
    assert "its bytes are damaged" in said.err
    assert ".tar: sample " in said.err


def stages(**microseconds: float) -> list[StageTime]:
    return [StageTime(name.replace("_", "-"), 1, cost / 1e6) for name, cost in microseconds.items()]


BUILDING = {"order": 1, "read": 50, "decode": 2_000, "augment": 900, "collate": 49}


@pytest.mark.parametrize(
    ("more", "rate", "limit", "told"),
    [
        ({}, 650, "decode", "67% of the 3.00 ms that a process works on a sample; 2 processes can do 667 samples/s"),
        ({"decode": 100}, 1_800, "augment", "82% of the 1.10 ms"),
        ({"fetch": 2_000}, 450, "fetch", "it gives 500 samples/s; a nearer store"),
        ({"fetch": 1_000}, 650, "decode", "limits the stream"),
        ({"hand_over": 5_000}, 190, "hand-over", "it gives 200 samples/s"),
        ({"hand_over": 100}, 300, "decode", "but the loader reaches 300, so something else"),
    ],
)  # fmt: skip
def test_the_bottleneck_is_the_stage_that_allows_least(
    more: dict[str, float], rate: float, limit: str, told: str
) -> None:
    found = bottleneck(stages(**(BUILDING | more)), workers=4, cores=2, rate=rate)
    assert found[0] == limit
    assert told in found[1]
    assert "\n" not in found[1]


def trained(workspace: Store) -> None:
    """Run ``r``: two epochs by one rank, with its log."""
    recipe = StreamRecipe.model_validate({"batch_size": 8, "partitions": 4, "window": 10, "augment": {"size": 8}})
    reader = DatasetReader(workspace, "tiny")
    order = OrderParameters(seed=3, partitions=4, window=10, batch_size=8)
    card = RunCard(
        name="r", fingerprint="", fingerprinted={}, recipe={"dataset": "tiny"}, dataset_name="tiny",
        dataset_digest=reader.card.digest, order=order, code_version="",
    )  # fmt: skip
    workspace.put("runs/r/run.json", card.to_json())
    log = AuditLog(workspace, "r", "0001", World(), 0)
    loader = StreamLoader(reader, recipe, seed=3, world=World(), audit=log)
    for _ in itertools.islice(loader, 5):
        pass
    log.flush()
    for _ in itertools.islice(loader, 5):
        pass
    log.flush()
    loader.close()
    reader.close()


def test_audit_says_what_was_proven(vitpipe: Vitpipe, workspace: Store) -> None:
    trained(workspace)
    said = vitpipe("audit", "r", "-w", "ws")
    assert (said.code, said.err) == (0, "")
    assert "proven: positions 0 to 80 were each handed out once" in said.out
    assert "2 whole epochs of tiny" in said.out
    found = json.loads(vitpipe("audit", "r", "-w", "ws", "--json").out)
    assert (found["is_exact"], found["end"], found["whole_epochs"]) == (True, 80, {"tiny": 2})
    assert found["segments"] == [{"attempt": "0001", "start": 0, "stop": 80, "world_size": 1}]


def test_audit_of_a_log_with_a_hole_names_it_and_exits_1(vitpipe: Vitpipe, workspace: Store) -> None:
    trained(workspace)
    workspace.delete("runs/r/audit/0001/rank-00000/part-00000000.parquet")
    for arguments in ((), ("--json",)):
        said = vitpipe("audit", "r", "-w", "ws", *arguments)
        assert said.code == 1
        assert "not handed out: 40 positions, the first are 0, 1, 2, 3, 4" in said.out
        assert "vitpipe: r: " in said.err
        assert len(said.err.splitlines()) == 1
    assert "proven" not in vitpipe("audit", "r", "-w", "ws").out


def test_audit_of_a_run_without_a_log_exits_2(vitpipe: Vitpipe, workspace: Store) -> None:
    trained(workspace)
    for info in workspace.list("runs/r/audit/"):
        workspace.delete(info.key)
    said = vitpipe("audit", "r", "-w", "ws")
    assert (said.code, said.out) == (2, "")
    assert "no audit log" in said.err
