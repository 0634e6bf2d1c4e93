"""Forks and extensions: what may differ, what is refused and how that is told, and what is written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import InputError, MismatchError
from pipeline.base.store import Store, open_store
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.run_card import extend, open_run_card
from pipeline.records.run import CheckpointCard, RunCard, StoredFile, checkpoint_card_key, extended, read_run_card
from tests.unit.pretrain.test_recipe import card, recipe


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With run ``r`` of 100 steps and its checkpoint of step 40."""
    store = open_store(str(tmp_path))
    open_run_card(store, recipe(), card(), "code")
    checkpoint(store, "r", 40)
    return store


def checkpoint(store: Store, run: str, step: int) -> None:
    """The card of one; its files are not looked at here."""
    file = StoredFile(name="0001/x", num_bytes=1, sha256="x")
    made = CheckpointCard(
        run=run,
        step=step,
        position=step * 16,
        updates=step,
        attempt="0001",
        world_size=2,
        zero_stage=2,
        dtype="bf16",
        fingerprint="f",
        dataset_digest="digest",
        code_version="code",
        files=(file,),
        weights=file,
    )
    store.put(checkpoint_card_key(run, step), made.to_json())


def forked(store: Store, *overrides: str, parent: str | None = "r@40", digest: str = "digest") -> RunCard:
    """Run ``s``, made from run ``r``."""
    return open_run_card(store, recipe("run=s", *overrides), card(digest=digest), "code", parent)


def test_a_fork_names_its_parent_for_good(store: Store) -> None:
    assert forked(store).parent == "r@40"
    assert forked(store, parent=None).parent == "r@40"
    assert read_run_card(store, "s").parent == "r@40"
    with pytest.raises(MismatchError, match=r"forked from: r@40 -> r@0"):
        forked(store, parent="r@0")


def test_a_run_that_is_there_is_no_fork(store: Store) -> None:
    open_run_card(store, recipe("run=s"), card(), "code")
    with pytest.raises(MismatchError, match=r"run 's' exists with another recipe: forked from: nothing -> r@40"):
        forked(store)


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.learning_rate=0.5",
        "optimizer.weight_decay=0",
        "schedule.decay=linear",
        "steps=41",
        "stream.augment.flip=false",
        "stream.mixup=0.3",
        "engine.zero_stage=1",
        "engine.precision=fp32",
        "objective={name: softmax, label_smoothing: 0.1}",
        "workers=4",
        "optimizer.ema=0.9",
    ],
)
def test_what_a_fork_may_change(store: Store, override: str) -> None:
    assert forked(store, override, "schedule.warmup_steps=1").parent == "r@40"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.width=32", "model.width: 16 -> 32"),
        ("optimizer.name=sgd", 'optimizer.name: "adamw" -> "sgd"'),
        ("objective=sigmoid", 'objective.name: "softmax" -> "sigmoid"'),
        ("stream.batch_size=32", "stream.batch_size: 16 -> 32"),
        ("stream.window=11", "stream.window: 10 -> 11"),
        ("seed=1", "seed: 0 -> 1"),
    ],
)
def test_what_a_fork_has_to_keep(store: Store, override: str, said: str) -> None:
    with pytest.raises(MismatchError) as caught:
        forked(store, override)
    assert said in str(caught.value)
    assert "init: r@40" in str(caught.value)
    assert store.head("runs/s/run.json") is None


def test_a_fork_in_other_data_is_refused(store: Store) -> None:
    with pytest.raises(MismatchError, match="dataset_digest"):
        forked(store, digest="other")


@pytest.mark.parametrize(
    ("parent", "said"),
    [
        ("r", "names no checkpoint"),
        ("r@41", "no checkpoint r@41 .*its steps: 40"),
        ("t@40", "no run 't'"),
        ("s@40", "a run cannot be forked from itself"),
    ],
)
def test_a_parent_that_is_not_there(store: Store, parent: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        forked(store, parent=parent)


def test_a_fork_with_nothing_to_do(store: Store) -> None:
    with pytest.raises(InputError, match="leaves nothing to do"):
        forked(store, "steps=40")


def run_with(store: Store, *overrides: str) -> tuple[RunCard, PretrainRecipe]:
    """Run ``long`` with *overrides*, trained to step 40."""
    made = recipe("run=long", *overrides)
    found = open_run_card(store, made, card(), "code")
    checkpoint(store, "long", 40)
    return found, made


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule.decay=constant"],
        ["schedule.decay=rsqrt"],
        ["schedule={decay: rsqrt, warmup_steps: 5, cooldown_steps: 60}"],
        ["schedule={decay: cosine, warmup_steps: 40}"],
    ],
)
def test_a_run_is_extended_while_its_past_stays_what_it_was(store: Store, overrides: list[str]) -> None:
    run, made = run_with(store, *overrides)
    extend(store, run, made, 200)
    assert extended(store, run) == 200
    extend(store, run, made, 200)
    extend(store, run, made, 300)
    assert extended(store, run) == 300
    assert len(list(store.list("runs/long/extend-"))) == 2
    with pytest.raises(InputError, match="would shorten it"):
        extend(store, run, made, 299)


@pytest.mark.parametrize(
    ("schedule", "update"),
    [
        ("{decay: cosine, warmup_steps: 10}", 12),
        ("{decay: linear, warmup_steps: 39}", 0),
        ("{decay: rsqrt, warmup_steps: 5, cooldown_steps: 70}", 32),
    ],
)
def test_what_would_change_the_past_is_refused(store: Store, schedule: str, update: int) -> None:
    run, made = run_with(store, f"schedule={schedule}")
    if not update:
        extend(store, run, made, 200)
        return
    with pytest.raises(MismatchError, match=rf"update {update}, which is done.*--from long@40"):
        extend(store, run, made, 200)
    assert extended(store, run) == 100


def test_the_recipe_of_an_extended_run_may_say_either_length(store: Store) -> None:
    run, made = run_with(store, "schedule.decay=constant")
    extend(store, run, made, 200)
    for steps in (100, 200):
        assert open_run_card(store, recipe("run=long", "schedule.decay=constant", f"steps={steps}"), card(), "c") == run
    with pytest.raises(MismatchError, match="steps: 100 -> 150"):
        open_run_card(store, recipe("run=long", "schedule.decay=constant", "steps=150"), card(), "code")
