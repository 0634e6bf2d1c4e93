"""A scheduler beside a run that goes on: what appears, what is damaged, what fails, and what is not wanted any more."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from jobs.base.ray_session import connected
from jobs.status import evaluations_status, evaluations_tables
from pipeline.base.store import Store, open_store
from pipeline.checkpoints.retention import held_steps
from pipeline.evaluate import scheduler as loop
from pipeline.evaluate.discovery import group_by_state, plan_all, store_suite
from pipeline.evaluate.ledger import Ledger
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.scheduler import Scheduler, ScheduleSummary
from pipeline.records.run import step_prefix
from pipeline.records.score import list_results
from tests.support.command import vitpipe
from tests.support.datasets import make_dataset
from tests.support.evaluations import (
    RUN,
    make_workspace,
    put_checkpoint,
    put_suite,
    recorded_files,
    recorded_results,
    suite_recipe,
    suite_tree,
)
from tests.support.scheduling import RecordingProgress
from tests.support.stored_models import put_network, tiny

_SECONDS = 120  # guards against hanging
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[list[BaseException]]:
    """*work* in a thread while the block runs; its error is raised after the block, which is given it too."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield errors
    finally:
        thread.join(_SECONDS)
    if errors:
        raise errors[0]


def wait_for(store: Store, count: int) -> None:
    deadline = time.monotonic() + _SECONDS
    while len(recorded_files(store)) < count:
        assert time.monotonic() < deadline, f"{len(recorded_files(store))} of {count} were recorded"
        time.sleep(0.02)


def schedule(
    store: Store, cluster: Cluster, recipe: Callable[[], EvaluateRecipe], told: RecordingProgress, **options: Any
) -> ScheduleSummary:
    with connected(cluster.address):
        return Scheduler(store, RUN, recipe, told, **options).run()


def test_what_appears_is_evaluated_what_is_damaged_is_named_and_what_is_added_is_backfilled(
    store: Store, cluster: Cluster
) -> None:
    make_workspace(store, [100], last=400)
    seeds: list[int] = [1]
    pinned: list[set[int]] = []
    told = RecordingProgress(lambda name: pinned.append(held_steps(store, RUN)))

    def train() -> None:
        wait_for(store, 2)
        put_checkpoint(store, 200)
        wait_for(store, 4)
        put_checkpoint(store, 300, damaged=True)
        seeds[0] = 2  # one more evaluation of each checkpoint
        wait_for(store, 6)
        before.update(recorded_results(store))
        put_checkpoint(store, 400)  # the last one: then the scheduler ends by itself

    before: dict[str, object] = {}

    def read() -> EvaluateRecipe:
        assert not errors, "the training gave up, and so does who watches it"
        return suite_recipe(seeds[0])

    with beside(train) as errors:
        outcome = schedule(store, cluster, read, told, every_seconds=0.2)
    assert (outcome.num_planned, outcome.num_recorded, outcome.num_done, outcome.failures) == (9, 9, 9, ())
    assert list(outcome.skipped) == [300]
    assert len(told.about("checkpoint of step 300 is skipped: 0001/model.safetensors has")) == 1, told.lines
    assert before.items() <= recorded_results(store).items(), "what was recorded before stays"
    assert set().union(*pinned) == {100, 200, 400}, "each while it was evaluated"
    assert held_steps(store, RUN) == set()


@pytest.mark.long
def test_while_they_are_needed_checkpoints_are_pinned(store: Store, cluster: Cluster) -> None:
    make_workspace(store, [100, 200])
    seen: list[set[int]] = []
    told = RecordingProgress(lambda name: seen.append(held_steps(store, RUN)))
    schedule(store, cluster, suite_recipe, told)
    assert seen[0] == {100, 200}
    assert held_steps(store, RUN) == set()


def test_one_that_fails_is_named_and_does_not_stop_the_others(store: Store, cluster: Cluster) -> None:
    make_workspace(store, [100, 200])
    make_dataset(store, "five", num_samples=30, num_classes=5, size=8, seed=2)
    weights = f"{step_prefix(RUN, 100)}/0001/model.safetensors"
    data = bytearray(store.read(weights))
    data[-1] ^= 1
    store.put(weights, bytes(data))
    tree = suite_tree(1, max_tries=2)
    tree["tasks"]["five"] = {"train": "train", "test": "five"}
    tree["suite"].append({"evaluator": "classify", "tasks": ["five"]})
    recipe = EvaluateRecipe.model_validate(tree)
    store_suite(store, RUN, "s", recipe)
    told = RecordingProgress()
    outcome = schedule(store, cluster, lambda: recipe, told)
    assert (outcome.num_planned, outcome.num_recorded) == (6, 2)
    assert sorted(outcome.failures) == [
        "classify on five of step 100: " + _damaged(weights),
        "classify on five of step 200: task five: train and five have other classes",
        "fewshot on task of step 100 (2-shot): " + _damaged(weights),
        "knn on task of step 100: " + _damaged(weights),
    ]
    found = evaluations_status(store, [RUN])
    assert {(one["name"], one["tries"], one["kind"]) for one in found["failed"]} == {
        ("classify on five of step 200", 1, "refused"),
        ("classify on five of step 100", 2, "error"),
        ("fewshot on task of step 100 (2-shot)", 2, "error"),
        ("knn on task of step 100", 2, "error"),
    }
    assert all(one["run"] == RUN and one["reason"] and one["retry_after"] is None for one in found["failed"])
    (suite,) = found["suites"]
    assert (len(suite["done"]), len(suite["failed"]), suite["due"]) == (2, 4, [])
    titles = {title: rows for title, _, rows in evaluations_tables(found)}
    assert titles["Evaluations: 2 recorded"] == [(RUN, "s", "0", "0", "0", "2", "4", "0")]
    assert len(titles["Failed: 4"]) == 4

    again = schedule(store, cluster, lambda: recipe, told)
    assert (again.num_done, len(again.failures)) == (0, 4), "what failed for good is not tried by itself"


@pytest.mark.long
def test_imported_weights_are_evaluated_once_by_the_command(store: Store, cluster: Cluster, tmp_path: Path) -> None:
    make_workspace(store, [100])
    theirs = open_store(str(tmp_path / "theirs"))
    own = put_network(theirs, tiny())
    weights = theirs.local_path(own.weights_key)
    suite = put_suite(tmp_path / "suite.json", 1)
    where = ("-w", store.uri, "--suite", suite, "--address", cluster.address, "--json")
    done = []
    for asked in (["--weights", str(weights), "--name", "theirs"], ["theirs"]):
        ended = vitpipe("evaluate", *asked, *where)
        assert ended.returncode == 0, ended.stderr
        result = json.loads(ended.stdout)
        done.append((result["run"], result["planned"], result["recorded"], result["done"]))
        theirs.delete(own.weights_key)
    assert done == [("theirs", 2, 2, 2), ("theirs", 2, 2, 0)]
    assert {result.key.weights_digest for result in list_results(store)} == {own.weights_digest}
    (told,) = evaluations_status(store, ["theirs"])["suites"]
    assert len(told["done"]) == 2


def _damaged(key: str) -> str:
    return f"{key}: its bytes are not those that the checkpoint's card names"


@pytest.mark.long
def test_what_is_cancelled_while_it_runs_ends_and_can_be_taken_up_again(
    store: Store, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_CANCELLED_SECONDS", 0.05)
    make_workspace(store, [100])
    tree = suite_tree(1)
    slow = {"steps": 100_000, "batch_size": 16, "learning_rates": [0.01]}
    tree["suite"].append({"evaluator": "finetune", "tasks": ["task"], "settings": slow})
    recipe, told = EvaluateRecipe.model_validate(tree), RecordingProgress()
    seen: list[dict[str, Any]] = []

    def cancel() -> None:
        wait_for(store, 2)
        seen.append(evaluations_status(store, []))
        Ledger(store, RUN).change_cancelled(lambda before: (*before, "finetune on *"))

    with beside(cancel):
        outcome = schedule(store, cluster, lambda: recipe, told)
    (running,) = seen[0]["running"]
    assert (running["run"], running["name"]) == (RUN, "finetune on task of step 100")
    assert running["who"].rpartition(":")[2].isdigit()
    assert (outcome.num_recorded, outcome.cancelled) == (2, ("finetune on task of step 100",))
    assert told.about("finetune on task of step 100 is cancelled")
    ledger = Ledger(store, RUN)
    ledger.change_cancelled(lambda before: ())
    ledger.refresh()
    assert [item.name for item in group_by_state(plan_all(store, RUN, [recipe]), ledger)["due"]] == [
        "finetune on task of step 100"
    ]


@pytest.mark.long
def test_an_interrupted_scheduler_gives_back_what_it_held(store: Store, cluster: Cluster) -> None:
    make_workspace(store, [100, 200, 300])

    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        schedule(store, cluster, suite_recipe, RecordingProgress(interrupt))
    ledger = Ledger(store, RUN)
    ledger.refresh()
    states = group_by_state(plan_all(store, RUN, [suite_recipe()]), ledger)
    assert states["running"] == states["waiting"] == states["failed"] == []
    assert states["due"]
    assert held_steps(store, RUN) == set()
    done = len(states["done"])
    outcome = schedule(store, cluster, suite_recipe, RecordingProgress())
    assert (outcome.num_recorded, outcome.num_done) == (12, 12 - done)
