"""What happens elsewhere while a scheduler works: marks of others on what it runs, and edits of its suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from jobs.base.ray_session import connected
from pipeline.base.errors import InputError, RecipeError
from pipeline.base.retry import RetryPolicy
from pipeline.base.store import Store, open_store
from pipeline.evaluate import ledger as ledgers
from pipeline.evaluate import scheduler as loop
from pipeline.evaluate.discovery import EvaluationRequest, plan_all, stored_suites
from pipeline.evaluate.ledger import Ledger
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.scheduler import Scheduler
from pipeline.evaluate.stage import evaluate
from pipeline.evaluate.worker import record_result, run_evaluation
from pipeline.records.ledger import Owner, ledger_key
from pipeline.records.score import EvaluationResult
from tests.support.datasets import make_dataset
from tests.support.evaluations import RUN, make_workspace, put_checkpoint, suite_recipe, suite_tree
from tests.support.scheduling import RecordingProgress

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def of_others(store: Store) -> Ledger:
    """The ledger as a process of another host sees it now."""
    ledger = Ledger(store, RUN)
    ledger.owner = Owner(place="another-host", pid=1, token="another")
    ledger.refresh()
    return ledger


def make_void(store: Store, item: PlannedEvaluation) -> None:
    """As ``--invalidate`` and ``--redo`` do."""
    assert of_others(store).invalidate(item.id, "asked for elsewhere")


def claim(store: Store, item: PlannedEvaluation) -> None:
    """As a scheduler does that takes our claim for expired."""
    assert of_others(store).claim(item.id, item.name) == 2


def record_first(store: Store, item: PlannedEvaluation) -> None:
    """As a scheduler does that took it over, and was faster."""
    result = EvaluationResult(id=item.id, key=item.key, metrics=(), num_samples=0, chosen={}, seconds=0, files={})
    assert record_result(store, result, {}, 0, RetryPolicy(0))


def nothing(store: Store, item: PlannedEvaluation) -> None:
    """Only its claim expires."""


# By seed of the evaluation: what strikes it, and what stands in the ledger in the end, besides renewals.
STRIKES: list[tuple[Callable[[Store, PlannedEvaluation], None], set[str]]] = [
    (make_void, {"claim-1", "claim-2", "invalid-0", "result", "result-1"}),
    (claim, {"claim-1", "claim-2", "result"}),
    (record_first, {"claim-1", "result"}),
    (nothing, {"claim-1", "result"}),
]


def test_what_runs_is_not_started_again_whatever_others_do_to_it(
    store: Store, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_TICK_SECONDS", 0.05)
    monkeypatch.setattr(loop, "CLAIM_SECONDS", 0.1)  # so that claims are renewed all the time,
    monkeypatch.setattr(ledgers, "CLAIM_SECONDS", -1000.0)  # and have expired all the same
    make_workspace(store, [100])
    slow = {"steps": 60, "batch_size": 16, "learning_rates": [0.01]}
    suite = [{"evaluator": "finetune", "tasks": ["task"], "seeds": list(range(len(STRIKES))), "settings": slow}]
    recipe = EvaluateRecipe.model_validate(suite_tree() | {"suite": suite})
    left = plan_all(store, RUN, [recipe])

    def read() -> EvaluateRecipe:
        """Asked at every look, right before the ledger."""
        for item in list(left):
            if store.head(ledger_key(item.id, "claim", 1)) is not None:
                assert store.head(f"evaluations/{item.id}/result.json") is None, "it ended before it could be struck"
                strike, _ = STRIKES[item.key.seed]
                strike(store, item)
                left.remove(item)
        return recipe

    with connected(cluster.address):
        outcome = Scheduler(store, RUN, read, RecordingProgress(), every_seconds=0.1).run()
    assert not left
    assert (outcome.num_planned, outcome.num_recorded, outcome.failures) == (4, 4, ())
    assert outcome.num_done == 3, "without what another one recorded"
    for item in plan_all(store, RUN, [recipe]):
        strike, files = STRIKES[item.key.seed]
        found = {info.key.rpartition("/")[2].removesuffix(".json") for info in store.list(f"evaluations/{item.id}/")}
        kinds = ("claim", "failure", "invalid", "result")
        assert {name for name in found if name.startswith(kinds)} == files, strike.__name__
        assert strike is not claim or "renew-2" not in found, "that claim is another's to renew"


def test_a_watched_suite_that_cannot_be_read_or_planned_leaves_the_one_before(store: Store, cluster: Cluster) -> None:
    make_workspace(store, [100], last=200)
    make_dataset(store, "copy", num_samples=60, size=8)
    for item in plan_all(store, RUN, [suite_recipe(1)]):
        run_evaluation(store, item)
    broken = RecipeError(["it is being edited"], "suite.yaml")
    missing, leaking = (
        EvaluateRecipe.model_validate(suite_tree(1, tasks={"task": {"train": "train", "test": name}}))
        for name in ("nowhere", "copy")
    )
    edits: list[EvaluateRecipe | RecipeError] = [leaking, missing, broken]
    kept: list[dict[str, EvaluateRecipe]] = []
    told = RecordingProgress()

    def read() -> EvaluateRecipe:
        kept.append(stored_suites(store, RUN))
        if len(kept) < 3:  # once when it is made, and at the first look
            return suite_recipe(1)
        if edits:
            edit = edits.pop()
            if isinstance(edit, RecipeError):
                raise edit
            return edit
        put_checkpoint(store, 200)
        for item in plan_all(store, RUN, [suite_recipe(2)]):
            run_evaluation(store, item)
        return suite_recipe(2)

    with connected(cluster.address):
        outcome = evaluate(store, EvaluationRequest(RUN, "s", read, every_seconds=0.02), told)
    assert (outcome.num_planned, outcome.num_recorded, outcome.failures) == (6, 6, ())
    lines = told.about("the suite cannot be used now, the one before stays: ")
    for line, said in zip(lines, ("it is being edited", "no dataset 'nowhere'", "share 60 images"), strict=True):
        assert said in line
    assert kept == [{}, {}, *[{"s": suite_recipe(1)}] * 4], "only what could be planned is kept"
    assert stored_suites(store, RUN) == {"s": suite_recipe(2)}

    with connected(cluster.address), pytest.raises(InputError, match="no dataset 'nowhere'"):
        evaluate(store, EvaluationRequest(RUN, "another", lambda: missing, every_seconds=0.02), told)
    assert set(stored_suites(store, RUN)) == {"s"}, "nor at the first look"
