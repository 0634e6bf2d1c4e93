"""``vitpipe evaluate``: where a suite comes from, and changes by the names of evaluations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import jobs.base.ray_session
from jobs.base.evaluation_request import EvaluateOptions, from_recipe, of_run, of_weights
from jobs.cli import app
from jobs.status import evaluations_status, evaluations_tables
from pipeline.base.config import build
from pipeline.base.errors import InputError, RecipeError, RefusedError
from pipeline.base.store import Store, open_store
from pipeline.evaluate.changes import Changes, apply_changes, describe_due
from pipeline.evaluate.discovery import EvaluationRequest, plan_all, store_suite
from pipeline.evaluate.ledger import Ledger
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.stage import import_requested_weights
from pipeline.evaluate.worker import run_evaluation
from pipeline.records.run import read_run_card
from pipeline.records.score import list_results
from tests.support.datasets import make_dataset
from tests.support.evaluations import RUN, make_workspace, put_suite, suite_recipe
from tests.support.stored_models import put_network, tiny


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run with two checkpoints of which nothing is evaluated yet."""
    store = open_store(str(tmp_path / "ws"))
    make_workspace(store, [100, 200])
    return store


ASKED = EvaluationRequest(RUN, "s", lambda: suite_recipe(2))


def perform_all(store: Store, generation: int = 0) -> None:
    """Record everything, as workers do."""
    for item in plan_all(store, RUN, [suite_recipe(2)]):
        run_evaluation(store, item, generation)


def test_a_suite_is_a_file_and_is_read_again_each_time(store: Store, tmp_path: Path) -> None:
    path = put_suite(tmp_path / "probes.yaml", 2)
    asked = of_run(EvaluateOptions(RUN, suite=str(path), overrides=("max_parallel=7",)), store)
    assert (asked.run, asked.suite, asked.read_recipe().max_parallel) == (RUN, "probes", 7)
    put_suite(path, 3)
    assert asked.read_recipe() == suite_recipe(3, max_parallel=7)
    chosen = asked.with_options(3, ["knn on *"], 5.0)
    assert (chosen.read_recipe().max_parallel, chosen.read_recipe().priority) == (3, ("knn on *",))
    assert chosen.every_seconds == 5.0


def test_a_suite_may_be_a_section_of_a_recipe(store: Store, tmp_path: Path) -> None:
    tree = json.loads(put_suite(tmp_path / "s.json", 2).read_text())
    (tmp_path / "chain.yaml").write_text(json.dumps({"workspace": "elsewhere", "evaluate": tree}))
    asked = of_run(EvaluateOptions(RUN, suite=str(tmp_path / "chain.yaml")), store)
    assert asked.read_recipe() == suite_recipe(2)


def test_a_run_that_had_a_suite_needs_none(store: Store) -> None:
    with pytest.raises(InputError, match="has not been evaluated yet"):
        of_run(EvaluateOptions(RUN), store)
    store_suite(store, RUN, "probes", suite_recipe(2))
    asked = of_run(EvaluateOptions(RUN, overrides=("cpus=2",)), store)
    assert (asked.suite, asked.read_recipe()) == ("probes", suite_recipe(2, cpus=2))
    store_suite(store, RUN, "more", suite_recipe(3))
    with pytest.raises(InputError, match="has several suites - add --suite, one of: more, probes"):
        of_run(EvaluateOptions(RUN), store)
    assert of_run(EvaluateOptions(RUN, suite="more"), store).read_recipe() == suite_recipe(3)
    with pytest.raises(RecipeError, match=r"no such suite; there are: .*more.*probes"):
        of_run(EvaluateOptions(RUN, suite="moore"), store)


def test_what_stands_first_is_a_recipe_or_a_run() -> None:
    assert EvaluateOptions("tiny").is_recipe(None)
    assert EvaluateOptions("tiny").is_recipe("ws")
    assert EvaluateOptions("recipe.yaml").is_recipe("ws"), "one that is missing is named as such"
    assert not EvaluateOptions(RUN).is_recipe("ws")
    assert not EvaluateOptions("tiny", suite="s.yaml").is_recipe("ws")
    assert not EvaluateOptions("tiny", train="a", test="b").is_recipe("ws")
    for given, said in ((EvaluateOptions("r", train="a"), "both"), (EvaluateOptions("r", "s", "a", "b"), "two suites")):
        with pytest.raises(InputError, match=said):
            given.is_recipe("ws")
    chain, asked = from_recipe(EvaluateOptions("tiny"), {"workspace": "ws"})
    assert (asked.run, asked.suite, asked.read_recipe()) == ("tiny", "recipe", chain.evaluate)


def test_weights_are_asked_for_like_a_run(store: Store, tmp_path: Path) -> None:
    own = put_network(open_store(str(tmp_path / "theirs")), tiny())
    path = str(tmp_path / "theirs" / own.weights_key)
    suite = str(put_suite(tmp_path / "probes.yaml", 1))
    before = [info.key for info in store.list()]
    asked = of_weights(EvaluateOptions("", suite=suite), store, path, "", {})
    name = f"imported-{own.weights_digest[:12]}"
    shown = f"weights {own.weights_digest[:12]}"
    assert (asked.run, asked.suite) == (name, "probes")
    due = [f"knn on task of {shown}", f"fewshot on task of {shown} (2-shot)"]
    assert describe_due(store, asked)["due"] == due
    assert names(apply_changes(store, asked, Changes(redo=("*",)), dry_run=True), "redo") == sorted(due)
    assert [info.key for info in store.list()] == before, "so far nothing was stored"
    missing = asked.with_options(None, None, None)
    tree = {"tasks": {"t": {"train": "train", "test": "nowhere"}}, "suite": [{"evaluator": "knn", "tasks": ["t"]}]}
    with pytest.raises(InputError, match="nowhere"):
        import_requested_weights(store, replace(missing, read_recipe=lambda: build(EvaluateRecipe, tree)))
    assert [info.key for info in store.list()] == before, "nor of weights whose suite cannot be planned"
    import_requested_weights(store, asked)
    assert describe_due(store, of_run(EvaluateOptions(name, suite=suite), store))["due"] == due
    with pytest.raises(InputError, match=f"no run 'typo' in .* - there are: {RUN}, {name}"):
        of_run(EvaluateOptions("typo", suite=suite), store)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "what is to be evaluated? - name a run, a recipe, or --weights"),
        (("--weights", "w", "--watch"), "--watch is for a run that goes on"),
        (("first", "--weights", "w"), "'first' and --weights are two things to evaluate - leave one out"),
        (("--weights", "w", "--name", "a/b"), "--name 'a/b' cannot be a name"),
        (("--weights", "w", "--train", "train"), "a task needs both --train and --test"),
        (("--weights", "w", "max_parallel=1"), "there are no weights at w"),
        (("first", "--name", "x"), "--name is for --weights"),
        (("first",), f"no run 'first' in {{uri}} - there are: {RUN}"),
    ],
)
def test_what_cannot_be_asked_is_one_line(store: Store, arguments: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, ["evaluate", *arguments, "-w", store.uri])
    assert isinstance(done.exception, InputError)
    assert done.exception.exit_code == 2
    told = str(done.exception)
    assert told.startswith(said.format(uri=store.uri)), told
    assert "\n" not in told


@pytest.fixture
def empty_tiny(store: Store) -> Store:
    """The same workspace with a run that is called as a recipe that ships with vitpipe, without a checkpoint."""
    card = read_run_card(store, RUN).model_copy(update={"name": "tiny"})
    store.put("runs/tiny/run.json", card.to_json())
    return store


def invoke(*arguments: str) -> tuple[str, str]:
    """What the command told, and the error that it ended with."""
    done = CliRunner().invoke(app, ["evaluate", *arguments])
    assert done.exception is None or isinstance(done.exception, RefusedError), done.exception
    return done.stdout, str(done.exception or "")


def test_a_run_wins_over_a_recipe_of_the_same_name(empty_tiny: Store) -> None:
    uri = empty_tiny.uri
    _, refused = invoke("tiny", "-w", uri, "--dry-run")
    assert refused == (
        f"run 'tiny' in {uri} has not been evaluated yet - add --suite FILE, or --train and --test; "
        f"tiny is a run there; the recipe is meant with workspace={uri} instead of -w"
    )
    _, refused = invoke("tiny", f"workspace={uri}", "--dry-run")
    assert refused.startswith("no dataset 'digits-test' in "), "so it is the recipe"
    store_suite(empty_tiny, "tiny", "probes", suite_recipe(1))
    told, refused = invoke("tiny", "-w", uri, "--dry-run", "--json")
    assert (json.loads(told)["run"], refused) == ("tiny", "")
    empty_tiny.delete("runs/tiny/run.json")
    _, refused = invoke("tiny", "-w", uri, "--dry-run")
    assert refused.startswith("no run 'tiny' in "), "it was asked for by the recipe"
    assert "instead of -w" not in refused


@pytest.mark.parametrize(
    ("run", "test", "said"),
    [
        (RUN, "nowhere", "no dataset 'nowhere' in "),
        (RUN, "leaking", "train and leaking share 30 images ("),
        ("tiny", "test", "there is no whole checkpoint yet - pretrain the run first"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_ray_starts(
    run: str, test: str, said: str, empty_tiny: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_debug: bool) -> None:
        raise AssertionError("ray was started")

    monkeypatch.setattr(jobs.base.ray_session, "_prepare", refuse)
    make_dataset(empty_tiny, "leaking", num_samples=30, size=8)
    _, refused = invoke(run, "-w", empty_tiny.uri, "--train", "train", "--test", test)
    assert said in refused


def names(found: dict[str, Any], what: str) -> list[str]:
    return sorted(found[what])


def test_a_dry_run_says_what_is_due_in_its_order(store: Store) -> None:
    before = list(store.list())
    recipe = suite_recipe(1, priority=("knn on *",))
    found = describe_due(store, EvaluationRequest(RUN, "s", lambda: recipe))
    assert found["due"] == [
        "knn on task of step 200",
        "knn on task of step 100",
        "fewshot on task of step 200 (2-shot)",
        "fewshot on task of step 100 (2-shot)",
    ]
    assert (found["planned"], found["done"], found["failed"]) == (4, [], [])
    assert list(store.list()) == before


def test_redo_makes_what_matches_due_again_and_nothing_else(store: Store) -> None:
    perform_all(store)
    marks = Changes(redo=("knn on task of step 1*", "fewshot on task of step 200 seed 1"), reason="a bug")
    matched = ["fewshot on task of step 200 (2-shot) seed 1", "knn on task of step 100"]
    found = apply_changes(store, ASKED, marks, dry_run=True)
    assert (names(found, "redo"), len(list_results(store))) == (matched, 6)
    found = apply_changes(store, ASKED, marks, dry_run=False)
    assert (names(found, "redo"), len(list_results(store))) == (matched, 4)
    assert names(describe_due(store, ASKED), "due") == matched
    perform_all(store, generation=1)
    assert len(list_results(store)) == 6
    with pytest.raises(InputError, match="no evaluation is called 'knm'"):
        apply_changes(store, ASKED, Changes(invalidate=("knm",)), dry_run=False)


def test_what_has_no_result_is_not_made_void(store: Store) -> None:
    found = apply_changes(store, ASKED, Changes(redo=("*",)), dry_run=False)
    assert len(found["redo"]) == 6
    assert not [info for info in store.list("evaluations/") if "invalid" in info.key]


def test_retry_is_for_what_failed_for_good(store: Store) -> None:
    ledger = Ledger(store, RUN)
    first, second, *_ = plan_all(store, RUN, [suite_recipe(2)])
    for item, kind in ((first, "refused"), (second, "error")):
        ledger.claim(item.id, item.name)
        ledger.end(item.id, kind, "why", max_tries=3)
    found = apply_changes(store, ASKED, Changes(retry=True), dry_run=False)
    assert found["retry"] == [first.name]
    due = describe_due(store, ASKED)
    assert first.name in due["due"]
    assert due["waiting"] == [second.name]


def test_cancel_and_uncancel(store: Store) -> None:
    assert Changes(cancel=("x",)).only_marks
    assert not Changes(cancel=("x",), retry=True).only_marks
    found = apply_changes(store, ASKED, Changes(cancel=("fewshot on *", "knn on * of step 100")), dry_run=False)
    assert len(found["cancelled"]) == 5
    assert describe_due(store, ASKED)["due"] == ["knn on task of step 200"]
    with pytest.raises(InputError, match="'fewshot' is not cancelled - cancelled is: fewshot on \\*; knn on"):
        apply_changes(store, ASKED, Changes(uncancel=("fewshot",)), dry_run=False)
    found = apply_changes(store, ASKED, Changes(uncancel=("fewshot on *",)), dry_run=True)
    assert found["cancelled"] == ["knn on task of step 100"]
    assert len(describe_due(store, ASKED)["due"]) == 1, "it was a dry run"
    apply_changes(store, ASKED, Changes(uncancel=("fewshot on *",)), dry_run=False)
    assert len(describe_due(store, ASKED)["due"]) == 5


def test_status_tells_who_runs_what_failed_and_what_waits(store: Store) -> None:
    assert evaluations_status(store, [RUN]) == {"recorded": 0, "running": [], "failed": [], "suites": []}
    store_suite(store, RUN, "probes", suite_recipe(2))
    first, second, third, *_ = plan_all(store, RUN, [suite_recipe(2)])
    ledger = Ledger(store, RUN)
    for item in (first, second):
        ledger.claim(item.id, item.name)
    ledger.end(second.id, "error", "no memory", max_tries=1)
    run_evaluation(store, third)
    found = evaluations_status(store, [RUN])
    (running,) = found["running"]
    assert (running["id"], running["run"], running["name"]) == (first.id, RUN, first.name)
    (failed,) = found["failed"]
    assert (failed["name"], failed["reason"], failed["tries"]) == (second.name, "no memory", 1)
    (suite,) = found["suites"]
    assert {state: len(suite[state]) for state in ("due", "running", "done", "failed")} == {
        "due": 3,
        "running": 1,
        "done": 1,
        "failed": 1,
    }
    titles = [title for title, _, _ in evaluations_tables(found)]
    assert titles == ["Evaluations: 1 recorded", "Running: 1", "Failed: 1", "Queue: 3"]
