"""SIGTERM, values that are not finite, forks, extensions and other world sizes: on real ranks, without Ray."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.store import Store
from pipeline.records.run import list_steps, read_checkpoint_card, read_run_card
from pipeline.stream.audit_check import check_audit
from tests.ranks.pretraining import (
    AFTER,
    BATCH,
    Fault,
    Job,
    Told,
    final_weights,
    losses,
    make_workspace,
    recipe_of,
    rows,
    run_through,
)

pytestmark = pytest.mark.timeout(600)
SKIPPING = [(1, "loss"), (1, "gradient"), (2, "gradient"), (3, "loss")]
PLAIN: dict[str, Any] = {"stream": {"workers": 0}}  # is begun sooner
CONSTANT: dict[str, Any] = {"schedule": {"decay": "constant", "warmup_steps": 2}}
NAN, NAN_GRADIENT = (Fault("nan", 1, 5),), (Fault("nan gradient", 1, 5),)
REFUSED = (Fault("full", 0, 5), Fault("away", 1, 5))
ROOM = (Fault("room", 0, 9), Fault("room", 1, 9))
JOBS = {
    "calm": Job(recipe_of("calm", 2)),
    "stopped": Job(recipe_of("stopped", 2), (Fault("term", 1, 6, AFTER),)),
    "stopped again": Job(recipe_of("stopped", 2)),
    "nan": Job(recipe_of("nan", 2, **PLAIN), NAN),
    "nan gradient": Job(recipe_of("nan-gradient", 2, **PLAIN), NAN_GRADIENT),
    "refused": Job(recipe_of("refused", 2, **PLAIN, checkpoint_every=2, max_failed_saves=9), (*REFUSED, *ROOM)),
    "refused for good": Job(recipe_of("given-up", 2, **PLAIN, checkpoint_every=2, max_failed_saves=1), REFUSED),
    "fork": Job(recipe_of("fork", 2), parent="calm@8"),
    "elsewhere": Job(recipe_of("elsewhere", 1, **PLAIN, optimizer={"learning_rate": 0.001}, steps=10), parent="calm@8"),
    "plain": Job(recipe_of("plain", 1, **PLAIN, steps=6, optimizer={"ema": 0.0})),
    "averaging": Job(recipe_of("averaging", 1, **PLAIN, steps=6), parent="plain@4"),
    "warm": Job(recipe_of("warm", 2, **PLAIN, steps=6, init="calm@12"), (Fault("term", 0, 4, AFTER),)),
    "warm again": Job(recipe_of("warm", 2, **PLAIN, steps=6, init="calm@12")),
    "warm and damaged": Job(recipe_of("damaged", 2, **PLAIN, steps=6, init="calm@12"), damaged=True),
    "short": Job(recipe_of("short", 2, **PLAIN, steps=8, **CONSTANT)),
    "extended": Job(recipe_of("short", 2, **PLAIN, steps=8, **CONSTANT), extend_to=12),
    "long": Job(recipe_of("long", 2, **PLAIN, **CONSTANT)),
    # stage 3 last: with it DeepSpeed puts another product of matrices into torch, for the whole process
    **{
        f"skipping-{what}-{stage}": Job(
            recipe_of(
                f"skipping-{what}-{stage}", stage, **PLAIN, on_nonfinite="skip", max_skipped=1, checkpoint_every=1
            ),
            NAN if what == "loss" else NAN_GRADIENT,
        )
        for stage, what in SKIPPING
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def told(store: Store) -> Told:
    """After all jobs, one after the other on the same two ranks: who does not die does not need new ones."""
    told = run_through(store, (2, list(JOBS.values())), limit_seconds=480)
    assert told.ends == [""]
    assert told.verdicts == []
    return told


def outcome(told: Told, job: str) -> str:
    """How *job* ended, which is alike on both ranks."""
    ours, theirs = (ends[list(JOBS).index(job)] for ends in told.outcomes)
    assert ours == theirs
    return ours


def test_sigterm_to_one_rank_saves_on_all_and_the_run_goes_on_from_there(told: Told, store: Store) -> None:
    said = outcome(told, "stopped")
    assert said.startswith("InterruptedRunError: run stopped was stopped by SIGTERM; a checkpoint of step 7 was saved")
    assert outcome(told, "stopped again") == ""
    assert list_steps(store, "stopped") == [0, 4, 7, 8, 12]
    assert losses(store, "stopped") == losses(store, "calm")
    assert final_weights(store, "stopped") == final_weights(store, "calm")
    log = store.read("runs/stopped/logs/0002/rank-1.log").decode()
    assert "begins at step 7 of 12 (stopped@7)" in log


@pytest.mark.long
def test_without_time_for_a_checkpoint_none_is_begun(store: Store) -> None:
    hurried = Job(recipe_of("hurried", 2, **PLAIN, grace_seconds=1e-6), (Fault("term", 0, 6, AFTER),))
    told = run_through(store, (2, [hurried]))
    [ours], [theirs] = told.outcomes
    assert ours == theirs
    assert "no time to save step 7" in ours
    assert list_steps(store, "hurried") == [0, 4]


def test_a_loss_that_is_not_finite_on_one_rank_ends_the_run_on_all(told: Told, store: Store) -> None:
    assert outcome(told, "nan").startswith("DivergedError: step 6: loss nan")
    for rank in range(2):
        assert "DivergedError: step 6: loss nan" in store.read(f"runs/nan/logs/0001/rank-{rank}.log").decode()
    assert list_steps(store, "nan") == [0, 4]


def test_a_gradient_that_is_not_finite_on_one_rank_ends_the_run_on_all(told: Told, store: Store) -> None:
    """The loss is: only the norm tells."""
    said = outcome(told, "nan gradient")
    assert re.match(r"DivergedError: step 6: loss \d\.\d+, gradient norm (nan|inf)", said), said
    assert list_steps(store, "nan-gradient") == [0, 4]


@pytest.mark.parametrize(("stage", "what"), SKIPPING)
def test_an_update_that_is_not_finite_is_left_out_on_all(told: Told, store: Store, stage: int, what: str) -> None:
    """The weights and their average stay as they were, to the last bit."""
    run = f"skipping-{what}-{stage}"
    assert outcome(told, run) == ""
    found = {row.step: row for row in rows(store, run)}
    assert math.isfinite(float.fromhex(found[6].loss)) == (what == "gradient")
    assert not math.isfinite(float.fromhex(found[6].grad_norm))
    before, at, after = (read_checkpoint_card(store, run, step) for step in (5, 6, 7))
    assert before.ema_weights is not None
    assert at.ema_weights is not None
    assert (at.weights.sha256, at.ema_weights.sha256) == (before.weights.sha256, before.ema_weights.sha256)
    assert (before.updates, at.updates, after.updates) == (5, 5, 6)
    assert after.weights.sha256 != at.weights.sha256
    assert [found[step].skipped for step in (5, 6, 12)] == [0, 1, 1]
    assert all(float.fromhex(found[step].loss) < 3 for step in range(7, 13))
    assert any("the update is left out (1 of at most 1)" in text for _, text in told.texts)


def test_a_store_that_refuses_for_some_steps_costs_checkpoints_alone(told: Told, store: Store) -> None:
    """It is full for one rank, away for the other: no row and no sample is missing from what is written later."""
    assert outcome(told, "refused") == ""
    steps = list_steps(store, "refused")
    assert 6 not in steps
    assert steps[-2:] == [10, 12]
    assert losses(store, "refused") == losses(store, "calm")
    assert final_weights(store, "refused") == final_weights(store, "calm")
    audit = check_audit(store, "refused")
    assert (audit.problems, audit.end) == ((), 12 * BATCH)
    attempt = said_by(told, "are not stored for now")[0][0]
    assert attempt == "0001"
    for rank, why in ((0, "No space left on device"), (1, "the store is away")):
        told_once = [text for _, text in said_by(told, f"rank {rank}: metrics and audit are not stored") if why in text]
        assert len(told_once) == 2, "once for each of the two runs"


def test_a_store_that_refuses_for_good_ends_the_run_by_the_writers_limit(told: Told, store: Store) -> None:
    """And by its words, though the metrics cannot be written on the way out."""
    said = outcome(told, "refused for good")
    assert said.startswith("FailedError: 1 checkpoints in a row were not saved; the last one: checkpoint of step "), (
        said
    )
    assert set(list_steps(store, "given-up")) <= {0, 2, 4}


def said_by(told: Told, part: str) -> list[tuple[str, str]]:
    return [(attempt, text) for attempt, text in told.texts if part in text]


def test_a_fork_goes_on_as_its_parent_did(told: Told, store: Store) -> None:
    assert outcome(told, "fork") == ""
    assert read_run_card(store, "fork").parent == "calm@8"
    assert list_steps(store, "fork") == [8, 12]
    assert losses(store, "fork") == {step: row for step, row in losses(store, "calm").items() if step > 8}
    assert final_weights(store, "fork")[1:] == final_weights(store, "calm")[1:]


@pytest.mark.long
def test_a_fork_may_go_elsewhere(told: Told, store: Store) -> None:
    """Another learning rate, ZeRO stage and length: the first loss is the parent's, since its weights are."""
    assert outcome(told, "elsewhere") == ""
    found, calm = losses(store, "elsewhere"), losses(store, "calm")
    assert sorted(found) == [9, 10]
    assert found[9] == calm[9]
    assert found[10] != calm[10]


def test_a_fork_may_begin_a_moving_average(told: Told, store: Store) -> None:
    """At the weights of its parent, which has none."""
    assert outcome(told, "plain") == outcome(told, "averaging") == ""
    assert read_checkpoint_card(store, "plain", 4).ema_weights is None
    first, last = (read_checkpoint_card(store, "averaging", step) for step in (4, 6))
    assert first.weights.sha256 == read_checkpoint_card(store, "plain", 4).weights.sha256
    assert first.ema_weights is not None
    assert last.ema_weights is not None
    assert first.ema_weights.sha256 == first.weights.sha256
    assert last.ema_weights.sha256 != last.weights.sha256
    assert losses(store, "averaging") == {step: row for step, row in losses(store, "plain").items() if step > 4}


def test_a_run_begins_with_the_weights_of_another_once(told: Told, store: Store) -> None:
    """Own run -> init: the second attempt goes on with its own, not with those again."""
    assert outcome(told, "warm").startswith("InterruptedRunError")
    assert outcome(told, "warm again") == ""
    assert read_checkpoint_card(store, "warm", 0).weights.sha256 == final_weights(store, "calm")[1]
    assert list_steps(store, "warm") == [0, 4, 5, 6]
    assert losses(store, "warm").keys() == set(range(1, 7))
    first = store.read("runs/warm/logs/0001/rank-1.log").decode()
    assert "begins with the weights of calm@12 (sha256 " in first
    assert "begins with the weights" not in store.read("runs/warm/logs/0002/rank-1.log").decode()


def test_a_run_whose_checkpoints_are_all_damaged_begins_with_its_weights_again(told: Told, store: Store) -> None:
    """From step 0, as a run that has none yet."""
    assert outcome(told, "warm and damaged") == ""
    log = store.read("runs/damaged/logs/0001/rank-0.log").decode()
    assert "checkpoint of step 4 of run damaged is left out" in log
    assert "begins with the weights of calm@12 (sha256 " in log
    assert list_steps(store, "damaged") == [0, 4, 6]
    first = read_checkpoint_card(store, "damaged", 0)
    assert (first.weights.sha256, first.updates) == (final_weights(store, "calm")[1], 0)
    assert losses(store, "damaged") == losses(store, "warm")


def test_an_extended_run_is_what_it_would_have_been_from_the_beginning(told: Told, store: Store) -> None:
    assert outcome(told, "short") == outcome(told, "extended") == outcome(told, "long") == ""
    assert json.loads(store.read("runs/short/extend-00000012.json"))["before"] == 8
    assert losses(store, "short") == losses(store, "long")
    assert final_weights(store, "short") == final_weights(store, "long")


@pytest.mark.long
def test_the_world_changes_from_two_to_one_to_two(tmp_path: Path) -> None:
    """The same global batches, by the audit; float32 losses to 1e-4 over 50 steps, without dropout."""
    store = make_workspace(tmp_path)
    fields: dict[str, Any] = {
        "steps": 50,
        "model": {"dropout": 0.0},
        "engine": {"precision": "fp32"},
        "checkpoint_every": 10,
    }
    calm, changing = recipe_of("calm", 2, **fields), recipe_of("changing", 2, **fields)
    told = run_through(
        store,
        (2, [Job(calm), Job(changing, (Fault("kill", 1, 17),))]),
        (1, [Job(changing, (Fault("kill", 0, 33),))]),
        (2, [Job(changing)]),
    )
    assert [bool(end) for end in told.ends] == [True, True, False]
    wanted = {step: float.fromhex(loss) for step, pairs in losses(store, "calm").items() for loss, _ in pairs}
    found = losses(store, "changing")
    assert sorted(found) == sorted(wanted) == list(range(1, 51))
    for step, pairs in found.items():
        for loss, _ in pairs:
            assert float.fromhex(loss) == pytest.approx(wanted[step], rel=1e-4)
    assert {row.world_size for row in check_audit(store, "changing").segments} == {1, 2}
    for run in ("calm", "changing"):
        audit = check_audit(store, run)
        assert (audit.problems, audit.end) == ((), 50 * BATCH)
