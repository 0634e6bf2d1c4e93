"""The audit: proves a history that is whole, across attempts and worlds, and names what is not."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import Store, open_store
from pipeline.base.world import World
from pipeline.records.run import OrderParameters, RunCard
from pipeline.stream import audit_check
from pipeline.stream.audit import AuditLog
from pipeline.stream.audit_check import AuditResult, Segment, check_audit
from pipeline.stream.batch import open_readers
from pipeline.stream.loader import StreamLoader
from pipeline.stream.mixture import mixture_digest
from pipeline.stream.recipe import AugmentRecipe, StreamRecipe
from tests.support.datasets import make_dataset
from tests.unit.stream.test_loader_damage import damage, order_of

RECIPE = StreamRecipe(batch_size=8, partitions=4, window=6, augment=AugmentRecipe(size=4, crop="none", flip=False))
WEIGHTS = {"tiny": 1.0}


@pytest.fixture
def workspace(tmp_path: Path) -> Store:
    """Dataset ``tiny`` of 40 images: an epoch is five batches."""
    store = open_store(str(tmp_path))
    make_dataset(store, "tiny", num_samples=40, size=8, max_samples=10)
    return store


def begin(store: Store, weights: dict[str, float] = WEIGHTS) -> None:
    """Put the run's card."""
    readers = open_readers(store, weights, RECIPE, World())
    card = RunCard(
        name="r",
        fingerprint="",
        fingerprinted={},
        recipe={"dataset": weights} if len(weights) > 1 else {"dataset": "tiny"},
        dataset_name="+".join(weights),
        dataset_digest=mixture_digest([reader.card.digest for reader in readers], list(weights.values())),
        order=OrderParameters(seed=0, partitions=4, window=6, batch_size=8),
        code_version="",
    )
    store.put("runs/r/run.json", card.to_json())


def attempt(
    store: Store,
    number: int,
    steps: range,
    world_size: int = 1,
    weights: dict[str, float] = WEIGHTS,
    **fields: Any,
) -> None:
    """Hand out *steps* to each rank of an attempt."""
    recipe = RECIPE.model_copy(update=fields)
    for rank in range(world_size):
        world = World(rank, world_size)
        log = AuditLog(store, "r", f"{number:04d}", world, steps.start * 8)
        readers = open_readers(store, weights, recipe, world)
        loader = StreamLoader(
            readers, recipe, seed=0, world=world, position=steps.start * 8, weights=list(weights.values()), audit=log
        )
        for batch in itertools.islice(loader, len(steps)):
            if batch.step % 3 == 2:
                log.flush()
        log.flush()
        loader.close()


def history(store: Store) -> None:
    """Three attempts: the second's world is another, and the third goes back behind its end."""
    begin(store)
    attempt(store, 1, range(0, 6))
    attempt(store, 2, range(4, 9), world_size=2)
    attempt(store, 4, range(7, 15))


def test_a_whole_history_is_exact_across_attempts_and_worlds(workspace: Store) -> None:
    history(workspace)
    assert check_audit(workspace, "r") == AuditResult(
        run="r",
        end=120,
        segments=(Segment("0001", 0, 32, 1), Segment("0002", 32, 56, 2), Segment("0004", 56, 120, 1)),
        whole_epochs={"tiny": 3},
        num_replaced=0,
        problems=(),
        num_problems=0,
    )


def test_chunks_make_no_difference(workspace: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    history(workspace)
    whole = check_audit(workspace, "r")
    monkeypatch.setattr(audit_check, "_CHUNK_ROWS", 16)
    assert check_audit(workspace, "r") == whole


def test_an_attempt_that_goes_back_to_the_start_makes_all_others_void(workspace: Store) -> None:
    history(workspace)
    attempt(workspace, 5, range(0, 3))
    result = check_audit(workspace, "r")
    assert (result.segments, result.end, result.is_exact) == ((Segment("0005", 0, 24, 1),), 24, True)


def test_replacements_are_proved_by_the_rule_and_counted(workspace: Store) -> None:
    ref = order_of(workspace).ref(13)
    damage(workspace, ref.shard, ref.row)
    begin(workspace)
    attempt(workspace, 1, range(0, 10), max_damaged=1)
    result = check_audit(workspace, "r")
    assert (result.problems, result.num_replaced, result.whole_epochs) == ((), 2, {"tiny": 2})


def test_a_mixture_is_proved_for_each_of_its_datasets(workspace: Store) -> None:
    make_dataset(workspace, "other", num_samples=12, size=8, max_samples=5, seed=1)
    weights = {"other": 1.0, "tiny": 3.0}
    begin(workspace, weights)
    attempt(workspace, 1, range(0, 8), weights=weights)
    attempt(workspace, 2, range(4, 14), world_size=4, weights=weights)
    result = check_audit(workspace, "r")
    assert (result.problems, result.end) == ((), 112)
    assert result.whole_epochs == {"other": 2, "tiny": 2}


Rows = np.ndarray[Any, Any]


def edit(store: Store, change: Callable[[Rows], Rows], part: str = "0004/rank-00000/part-00000000") -> None:
    """Rewrite one part of a log: rows (7, n) of step, position, dataset, epoch, shard, row, skipped."""
    key = f"runs/r/audit/{part}.parquet"
    table = pq.read_table(io.BytesIO(store.read(key)))
    rows = change(np.vstack([column.to_numpy() for column in table.columns]))
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(zip(table.column_names, rows, strict=True)), schema=table.schema), buffer)
    store.put(key, buffer.getvalue())


def replaced_at(row: int, at: int, by: Callable[[int], int]) -> Callable[[Rows], Rows]:
    """Change one number of a log."""

    def change(rows: Rows) -> Rows:
        rows[row, at] = by(int(rows[row, at]))
        return rows

    return change


TAMPERINGS: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "a row is missing": (lambda rows: np.delete(rows, 3, axis=1), "not handed out: 1 positions, the first are 59"),
    "a row is there twice": (lambda rows: np.insert(rows, 3, rows[:, 3], axis=1), "more than once: 1 positions"),
    "another sample": (replaced_at(5, 0, lambda row: (row + 1) % 10), "not what the order names: position 56"),
    "another epoch": (replaced_at(3, 1, lambda epoch: epoch + 1), "not what the order names: position 57"),
    "another dataset": (replaced_at(2, 1, lambda dataset: 1), "not what the order names: position 57"),
    "a skip that the rule does not give": (replaced_at(6, 2, lambda _: 1), "not what the order names: position 58"),
    "another step": (replaced_at(0, 2, lambda step: step + 1), "not what the order names: position 58"),
    "a position of long ago": (replaced_at(1, 2, lambda _: 3), "out of turn: position 3"),
    "two samples change places": (
        lambda rows: np.vstack([rows[:2], rows[2:, np.r_[1, 0, 2 : rows.shape[1]]]]),
        "not what the order names: position 56",
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_what_is_not_as_it_should_be_is_named(workspace: Store, name: str) -> None:
    history(workspace)
    change, told = TAMPERINGS[name]
    edit(workspace, change)
    result = check_audit(workspace, "r")
    assert not result.is_exact
    assert any(told in problem for problem in result.problems), result.problems


def test_rows_of_another_ranks_slots_are_strangers(workspace: Store) -> None:
    history(workspace)
    first, second = (f"0002/rank-0000{rank}/part-00000000" for rank in (0, 1))
    kept: list[Rows] = []
    edit(workspace, lambda rows: kept.append(rows) or rows, first)  # type: ignore[func-returns-value]
    edit(workspace, lambda rows: kept.append(rows) or kept[0], second)  # type: ignore[func-returns-value]
    edit(workspace, lambda rows: kept[1], first)
    result = check_audit(workspace, "r")
    assert any("not what the order names: position 32 on rank 1" in problem for problem in result.problems)


def test_a_lost_log_is_a_gap(workspace: Store) -> None:
    history(workspace)
    for info in list(workspace.list("runs/r/audit/0001/")):
        workspace.delete(info.key)
    assert "positions 0 to 31 are in no log" in check_audit(workspace, "r").problems


def test_logs_of_ranks_that_do_not_belong_together_are_told(workspace: Store) -> None:
    history(workspace)
    for info in list(workspace.list("runs/r/audit/0002/rank-00001/")):
        workspace.delete(info.key)
    result = check_audit(workspace, "r")
    assert any("attempt 0002: the logs of its ranks [0] do not belong together" in told for told in result.problems)
    assert result.num_problems > 1  # and its positions are missing


def test_a_run_without_a_log_is_refused(workspace: Store) -> None:
    begin(workspace)
    with pytest.raises(InputError, match=r"stream\.audit"):
        check_audit(workspace, "r")


def test_another_dataset_of_that_name_is_refused(workspace: Store) -> None:
    history(workspace)
    for info in list(workspace.list("datasets/tiny/")):
        workspace.delete(info.key)
    make_dataset(workspace, "tiny", num_samples=40, size=8, max_samples=10, seed=3)
    with pytest.raises(DamageError, match="no longer the one that run r was trained on"):
        check_audit(workspace, "r")


def test_a_part_that_cannot_be_read_is_told_by_name(workspace: Store) -> None:
    history(workspace)
    key = "runs/r/audit/0004/rank-00000/part-00000000.parquet"
    workspace.put(key, workspace.read(key)[:50])
    with pytest.raises(DamageError, match=r"part-00000000\.parquet cannot be read"):
        check_audit(workspace, "r")


def test_an_order_that_repeats_samples_is_found_without_asking_the_order(
    workspace: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stream.order.permute", lambda items, lengths, keys: np.zeros_like(items))
    begin(workspace)
    attempt(workspace, 1, range(0, 5))
    assert check_audit(workspace, "r").problems == ("tiny: epoch 0 is not each of its 40 samples once (40)",)
