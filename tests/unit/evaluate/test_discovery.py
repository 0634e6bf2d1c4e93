"""From checkpoints to a plan: damaged ones are named once, and commands find evaluations by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.base.progress import Silent
from pipeline.base.store import Store, open_store
from pipeline.evaluate.changes import matching_evaluations
from pipeline.evaluate.discovery import RunPlanner, group_by_state, plan_all, store_suite, stored_suites
from pipeline.evaluate.ledger import Ledger
from pipeline.evaluate.worker import run_evaluation
from pipeline.records.run import RETIRED, Extension, checkpoint_card_key, extension_key, step_prefix
from tests.support.evaluations import RUN, make_workspace, put_checkpoint, remove_checkpoint, suite_recipe


class Lines(Silent):
    """What was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run of 300 steps at its second checkpoint."""
    store = open_store(str(tmp_path))
    make_workspace(store, [100, 200], last=300)
    return store


def steps(planner: RunPlanner) -> set[int | None]:
    """The steps that an evaluation is planned for."""
    return {item.model_ref.step for item in planner.plan(suite_recipe(1), is_watching=True)}


def test_checkpoints_that_appear_vanish_and_are_damaged(store: Store) -> None:
    told = Lines()
    planner = RunPlanner(store, RUN, told)
    assert steps(planner) == {100, 200}
    put_checkpoint(store, 250, damaged=True)
    for _ in range(3):
        assert steps(planner) == {100, 200}
    assert list(planner.skipped) == [250]
    assert len(told.lines) == 1
    assert told.lines[0].startswith("checkpoint of step 250 is skipped: 0001/model.safetensors has ")
    put_checkpoint(store, 250)  # made anew by the training that found it damaged
    store.delete(checkpoint_card_key(RUN, 250))
    put_checkpoint(store, 250)
    assert steps(planner) == {100, 200, 250}
    assert planner.skipped == {}
    remove_checkpoint(store, 100)
    assert steps(planner) == {200, 250}
    assert told.lines[1:] == ["checkpoint of step 100 is gone; what was not evaluated of it is left out"]


def test_one_that_is_to_be_looked_at_anew_is_told_as_gone_damaged_or_stays(store: Store) -> None:
    told = Lines()
    planner = RunPlanner(store, RUN, told)
    for step in (100, 200):
        planner.forget(step)
    assert steps(planner) == {100, 200}
    assert told.lines == []
    for step in (100, 200):
        planner.forget(step)
    remove_checkpoint(store, 100)
    put_checkpoint(store, 200, damaged=True)
    assert steps(planner) == set()
    assert told.lines[0] == "checkpoint of step 100 is gone; what was not evaluated of it is left out"
    assert told.lines[1].startswith("checkpoint of step 200 is skipped: ")
    assert (len(told.lines), list(planner.skipped), planner.is_empty) == (2, [200], True)


def test_a_damaged_card_is_one_damaged_checkpoint(store: Store) -> None:
    store.put(checkpoint_card_key(RUN, 150), b"{")
    told = Lines()
    assert steps(RunPlanner(store, RUN, told)) == {100, 200}
    assert len(told.lines) == 1
    assert "checkpoint of step 150 is skipped" in told.lines[0]


def test_a_run_is_complete_with_its_last_step_also_after_it_was_made_longer(store: Store) -> None:
    planner = RunPlanner(store, RUN, Silent())
    steps(planner)
    assert not planner.is_complete
    put_checkpoint(store, 300)
    steps(planner)
    assert planner.is_complete
    store.put(extension_key(RUN, 400), Extension(run=RUN, steps=400, before=300, done=300).to_json())
    steps(planner)
    assert not planner.is_complete
    put_checkpoint(store, 400)
    steps(planner)
    assert planner.is_complete


def test_an_added_evaluator_is_all_that_is_due(store: Store) -> None:
    ledger = Ledger(store, RUN)
    before = plan_all(store, RUN, [suite_recipe(1)])
    for item in before:
        assert run_evaluation(store, item)
    ledger.refresh()
    states = group_by_state(plan_all(store, RUN, [suite_recipe(2)]), ledger)
    assert [item.id for item in states["done"]] == [item.id for item in before]
    assert sorted(item.name for item in states["due"]) == [
        "fewshot on task of step 100 (2-shot) seed 1",
        "fewshot on task of step 200 (2-shot) seed 1",
    ]


def test_names_are_found_also_of_steps_that_were_removed(store: Store) -> None:
    card = store.read(checkpoint_card_key(RUN, 100))
    remove_checkpoint(store, 100)
    store.put(f"{step_prefix(RUN, 100)}/{RETIRED}", card)
    planned = plan_all(store, RUN, [suite_recipe(1)], with_retired=True)
    assert [item.name for item in matching_evaluations(planned, ["knn on * of step 1*"])] == ["knn on task of step 100"]
    assert {item.model_ref.step for item in plan_all(store, RUN, [suite_recipe(1)])} == {200}
    with pytest.raises(InputError, match="no evaluation is called 'knm on \\*' - names are like: fewshot on task"):
        matching_evaluations(planned, ["knn on *", "knm on *"])


def test_suites_are_kept_by_name_and_replaced(store: Store) -> None:
    store_suite(store, RUN, "probes", suite_recipe(1))
    store_suite(store, RUN, "probes", suite_recipe(2))
    store_suite(store, "another", "probes", suite_recipe(3))
    store.put(f"evaluations/suites/{RUN}/broken.json", b"{")
    assert stored_suites(store, RUN) == {"probes": suite_recipe(2)}
