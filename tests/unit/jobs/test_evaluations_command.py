"""``vitpipe evaluations``: the changes by name, each as a command; and the old options of ``evaluate``, which stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import jobs.evaluate
from pipeline.base.store import Store, open_store
from pipeline.evaluate.discovery import plan_all, store_suite
from pipeline.evaluate.ledger import Ledger
from pipeline.evaluate.scheduler import ScheduleSummary
from pipeline.evaluate.worker import run_evaluation
from pipeline.records.score import list_results
from tests.support.evaluations import RUN, make_workspace, suite_recipe
from tests.unit.jobs.conftest import Command

KNN_100, KNN_200 = "knn on task of step 100", "knn on task of step 200"
FEWSHOT_100, FEWSHOT_200 = "fewshot on task of step 100 (2-shot)", "fewshot on task of step 200 (2-shot)"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run with two checkpoints: the k-NN of both is recorded, the few-shot of step 100 failed for good."""
    store = open_store(str(tmp_path / "ws"))
    make_workspace(store, [100, 200])
    store_suite(store, RUN, "probes", suite_recipe(1))
    ledger = Ledger(store, RUN)
    for evaluation in plan_all(store, RUN, [suite_recipe(1)]):
        if evaluation.name in (KNN_100, KNN_200):
            run_evaluation(store, evaluation)
        elif evaluation.name == FEWSHOT_100:
            ledger.claim(evaluation.id, evaluation.name)
            ledger.end(evaluation.id, "refused", "why", max_tries=3)
    return store


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Instead of a cluster: ``max_parallel`` of the suite, for each time that something would have been run."""
    calls: list[int | None] = []

    def run_evaluate(_chain: Any, request: Any, *_: Any) -> ScheduleSummary:
        calls.append(request.read_recipe().max_parallel)
        return ScheduleSummary(num_planned=4, num_recorded=2, num_done=1, failures=(), cancelled=(), skipped={})

    monkeypatch.setattr(jobs.evaluate, "run_evaluate", run_evaluate)
    return calls


def result_of(command: Command, *arguments: object) -> tuple[dict[str, Any], str]:
    """The JSON that the command prints, and its stderr."""
    code, out, err = command(*arguments, "--json")
    assert code == 0, err
    return json.loads(out), err


def test_list_tells_names_by_state(command: Command, store: Store) -> None:
    before = [(info.key, info.etag) for info in store.list()]
    listed, err = result_of(command, "evaluations", "list", RUN, "-w", store.uri)
    assert (listed["done"], listed["failed"], listed["due"]) == ([KNN_100, KNN_200], [FEWSHOT_100], [FEWSHOT_200])
    assert (listed["run"], listed["planned"], err) == (RUN, 4, "")
    _, out, _ = command("evaluations", "list", RUN, "-w", store.uri)
    assert f"done (2):\n  {KNN_100}\n  {KNN_200}\n" in out
    assert "cancelled: nothing" in out
    assert [(info.key, info.etag) for info in store.list()] == before


CHANGES = {
    "redo": ("redo", "knn on * of step 100", "--reason", "a bug"),
    "invalidate": ("invalidate", "knn on * of step 100", "--reason", "a bug"),
    "cancel": ("cancel", "fewshot on *"),
    "retry": ("retry",),
}
AFTER = {
    "redo": {"redo": [KNN_100], "due": {FEWSHOT_200, KNN_100}, "num_results": 1},
    "invalidate": {"invalidate": [KNN_100], "due": {FEWSHOT_200, KNN_100}, "num_results": 1},
    "cancel": {"cancelled": [FEWSHOT_100, FEWSHOT_200], "due": set(), "num_results": 2},
    "retry": {"retry": [FEWSHOT_100], "due": {FEWSHOT_100, FEWSHOT_200}, "num_results": 2},
}


def old_options(change: str, *patterns: str) -> tuple[str, ...]:
    """The same as options of ``evaluate``."""
    name, *rest = CHANGES[change]
    return (f"--{name}", *rest, *patterns)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_command_and_by_old_option(
    change: str, old: bool, command: Command, store: Store, runs: list[int | None]
) -> None:
    if old:
        arguments = ("evaluate", RUN, *old_options(change), "-w", store.uri)
        note = f"note: --{change}: use vitpipe evaluations {change}\n"
    else:
        name, *rest = CHANGES[change]
        arguments, note = ("evaluations", name, RUN, *rest, "-w", store.uri), ""
    expected = AFTER[change]
    key = next(iter(expected))
    before = [(info.key, info.etag) for info in store.list()]
    names, err = result_of(command, *arguments, "--dry-run")
    assert (sorted(names[key]), err, runs) == (expected[key], note, [])
    assert [(info.key, info.etag) for info in store.list()] == before, "it was a dry run"
    names, err = result_of(command, *arguments)
    assert (sorted(names[key]), err) == (expected[key], note)
    assert len(runs) == (change in ("redo", "retry"))
    assert ("planned" in names) == (change in ("redo", "retry"))
    listed, _ = result_of(command, "evaluations", "list", RUN, "-w", store.uri)
    assert set(listed["due"]) == expected["due"]
    assert len(list_results(store)) == expected["num_results"]
    bodies = [store.read(info.key) for info in store.list("evaluations/") if "invalid" in info.key]
    if change in ("redo", "invalidate"):
        assert [json.loads(body)["reason"] for body in bodies] == ["a bug"]


@pytest.mark.parametrize(
    "undo", [("evaluations", "cancel", RUN, "fewshot on *", "--undo"), ("evaluate", RUN, "--uncancel", "fewshot on *")]
)
def test_a_cancel_is_taken_back(undo: tuple[str, ...], command: Command, store: Store, runs: list[int | None]) -> None:
    result_of(command, "evaluations", "cancel", RUN, "fewshot on *", "-w", store.uri)
    names, err = result_of(command, *undo, "-w", store.uri)
    assert (names["cancelled"], names["cancelled_patterns"], runs) == ([], [], [])
    assert err == ("note: --uncancel: use vitpipe evaluations cancel --undo\n" if undo[0] == "evaluate" else "")
    code, _, err = command("evaluations", "cancel", RUN, "knn", "--undo", "-w", store.uri)
    assert (code, err) == (2, "vitpipe: 'knn' is not cancelled - cancelled is: nothing\n")


def test_old_options_together_are_one_note(command: Command, store: Store, runs: list[int | None]) -> None:
    arguments = ("evaluate", RUN, "--redo", "knn on *", "--retry", "-w", store.uri)
    names, err = result_of(command, *arguments)
    assert (names["redo"], names["retry"], len(runs)) == ([KNN_100, KNN_200], [FEWSHOT_100], 1)
    assert err == "note: --redo, --retry: use vitpipe evaluations redo, vitpipe evaluations retry\n"


def test_workers_can_be_chosen_for_what_is_run(command: Command, store: Store, runs: list[int | None]) -> None:
    code, out, err = command("evaluations", "retry", RUN, "--max-parallel", 3, "-w", store.uri)
    assert (code, runs, err) == (0, [3], "")
    assert out == f"{RUN}: 1 evaluations done now, 4 in all\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("redo", RUN, "knm"), "no evaluation is called 'knm'"),
        (("invalidate", "nobody", "knn on *"), "no run 'nobody'"),
        (("list", RUN, "--suite", "nowhere"), "no such suite"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    arguments: tuple[str, ...], problem: str, command: Command, store: Store, runs: list[int | None]
) -> None:
    code, out, err = command("evaluations", *arguments, "-w", store.uri)
    assert (code, out, runs) == (2, "", [])
    assert problem in err
    assert len(err.splitlines()) == 1
