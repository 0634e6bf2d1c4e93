"""Every image that came in is written, rejected or a duplicate, and ``verify --full`` counts the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from tests.support.command import vitpipe
from tests.support.faults import (
    REJECTED,
    Sharding,
    assert_no_process_left,
    content,
    make_photographs,
    one_line,
    plant_duplicates,
    plant_rejected,
    put,
    random_png,
)

WHOLE = 90  # images without those that are planted
SEEN = "places/china/temple/0004.jpeg"  # also in the evaluation set


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("sums"), WHOLE)


@pytest.fixture(scope="module")
def duplicates(corpus: Path) -> dict[str, tuple[str, str]]:
    return plant_duplicates(corpus)


@pytest.fixture(scope="module")
def workspace(
    corpus: Path, duplicates: dict[str, tuple[str, str]], cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An evaluation set, the corpus without duplicates, and the same split in two."""
    evaluation, workspace = tmp_path_factory.mktemp("evaluation"), tmp_path_factory.mktemp("workspace")
    put(evaluation, "seen/one.jpg", (corpus / SEEN).read_bytes())
    put(evaluation, "unseen/other.png", random_png(7))
    options = ("max_samples=16", "duplicates.within=pixels", "duplicates.against=[validation]")
    for sharding in (
        Sharding(evaluation, (), cluster.address, "validation"),
        Sharding(corpus, options, cluster.address, "clean"),
        Sharding(corpus, (*options, "split.parts={train: 0.8, held: 0.2}"), cluster.address, "parted"),
    ):
        ended = sharding.run(workspace)
        assert ended.code == 0, ended.told
    return workspace


def card_of(workspace: Path, name: str) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((workspace / "datasets" / name / "dataset.json").read_bytes())
    return card


def rows_of(workspace: Path, name: str, table: str) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(workspace / "datasets" / name / f"{table}.parquet").to_pylist()
    assert len({row["origin"] for row in rows}) == len(rows)
    return {row["origin"]: row for row in rows}


def written(workspace: Path, name: str) -> set[str]:
    indexes = (workspace / "datasets" / name).glob("shard-*.parquet")
    return {origin for index in indexes for origin in pq.read_table(index)["origin"].to_pylist()}


def test_every_image_is_accounted_for(workspace: Path, corpus: Path, duplicates: dict[str, tuple[str, str]]) -> None:
    rejects, copies = rows_of(workspace, "clean", "rejects"), rows_of(workspace, "clean", "duplicates")
    assert {origin: row["reason"] for origin, row in rejects.items()} == REJECTED
    told = {origin: (row["reason"], row["of"]) for origin, row in copies.items() if origin != SEEN}
    assert told == duplicates
    assert copies[SEEN]["reason"].startswith("evaluation-")
    assert copies[SEEN]["of"].startswith("validation/")
    other_class = [origin for origin, row in copies.items() if row["labels_differ"] and origin != SEEN]
    assert other_class == ["places/china/temple/zz-other-class.png"]
    every = {path.relative_to(corpus).as_posix() for path in corpus.rglob("*") if path.is_file()}
    assert written(workspace, "clean") == every - set(rejects) - set(copies)
    card = card_of(workspace, "clean")
    assert card["num_input"] == len(every) == WHOLE + len(REJECTED) + len(duplicates)
    assert card["num_input"] == card["num_samples"] + card["num_rejected"] + card["num_duplicates"]


def test_the_parts_of_a_split_share_the_samples(workspace: Path) -> None:
    parts = {name: written(workspace, f"parted-{name}") for name in ("train", "held")}
    assert not parts["train"] & parts["held"]
    assert parts["train"] | parts["held"] == written(workspace, "clean")
    whole = card_of(workspace, "clean")
    cards = [card_of(workspace, f"parted-{name}") for name in parts]
    for count in ("num_input", "num_samples", "num_rejected", "num_duplicates"):
        assert sum(card[count] for card in cards) == whole[count], count


def test_verify_full_agrees_and_nothing_else_is_there(workspace: Path) -> None:
    done = vitpipe("verify", "--full", "--json", "--workspace", workspace)
    assert done.returncode == 0, done.stderr
    names = {"clean", "validation", "parted-train", "parted-held"}
    assert json.loads(done.stdout)["problems"] == {name: [] for name in names}
    for key in content(workspace):
        _, name, file = key.split("/")
        assert name in names
        assert file.endswith((".tar", ".parquet", "dataset.json"))


def test_too_many_rejects_end_it_early_and_leave_nothing(sharding: Sharding, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for number in range(600):
        put(corpus, f"broken/{number}.jpg", b"<html>")
        put(corpus, f"whole/{number}.png", random_png(number))
    plant_rejected(corpus)
    sharding = replace(sharding, corpus=corpus, overrides=("max_samples=20",))
    ended = sharding.run(tmp_path / "workspace")
    assert ended.code == 1
    told = one_line(ended.told)
    assert "images rejected (" in told
    assert "raise max_reject_ratio (0.01)" in told
    assert int(told.removeprefix("vitpipe: ").partition(" of ")[0]) < 300, "not early"
    assert content(tmp_path / "workspace") == {}
    assert_no_process_left(sharding.mark)
