"""What evaluations leave behind goes once nothing refers to it, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import Store, open_store
from pipeline.evaluate.cleanup import find_imported, find_tunings
from pipeline.evaluate.discovery import plan_all, store_suite
from pipeline.evaluate.finetuning.trainer import FinetuneCheckpoint
from pipeline.evaluate.imported_weights import read_weights, store_weights
from pipeline.evaluate.ledger import Ledger
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.worker import run_evaluation
from pipeline.records.dataset import dataset_prefix
from pipeline.records.imported import imported_card_key
from tests.support.evaluations import RUN, make_workspace, suite_recipe
from tests.support.stored_models import put_network, tiny

NOW = -60.0  # seconds: what was just written is old enough


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run with two checkpoints, and a suite of six evaluations."""
    store = open_store(str(tmp_path))
    make_workspace(store, [100, 200])
    store_suite(store, RUN, "s", suite_recipe(2))
    return store


def keep_tuning(store: Store, evaluation_id: str) -> str:
    """What a fine-tuning stores on its way; its key."""
    key = FinetuneCheckpoint(store, evaluation_id, 0.1)._key
    store.put(key, b"half-way")
    return key


def tuning_of(store: Store, item: PlannedEvaluation) -> str:
    return keep_tuning(store, item.id)


def test_tunings_go_once_they_are_recorded_or_nobody_asks_for_them(store: Store) -> None:
    recorded, running, waiting, failed, due, cancelled = plan_all(store, RUN, [suite_recipe(2)])
    ledger = Ledger(store, RUN)
    for item in (running, waiting, failed):
        ledger.claim(item.id, item.name)
    ledger.end(waiting.id, "lost", "a worker went away", max_tries=3)
    ledger.end(failed.id, "error", "no memory", max_tries=1)
    ledger.change_cancelled(lambda _: [cancelled.name])
    run_evaluation(store, recorded)
    keys = {tuning_of(store, item): item for item in (recorded, running, waiting, failed, cancelled, due)}
    stray = keep_tuning(store, "f" * 64)
    found = {leftover.key: leftover.why for leftover in find_tunings(store, NOW)}
    nobody = "no suite asks for its evaluation"
    assert found == {
        tuning_of(store, recorded): "its evaluation is recorded",
        tuning_of(store, cancelled): nobody,
        stray: nobody,
    }
    assert len(keys) == 6
    assert not list(find_tunings(store, 3600)), "what is young may be somebody's"
    store_suite(store, RUN, "s", suite_recipe(1))  # the second seed is not asked for any more
    found = {leftover.key for leftover in find_tunings(store, NOW)}
    gone = {key for key, item in keys.items() if item.key.seed == 1 and item is not running}
    assert gone <= found
    assert not found & {tuning_of(store, running)}


def test_tunings_stay_while_nobody_knows_what_is_asked_for(store: Store) -> None:
    due, *_ = plan_all(store, RUN, [suite_recipe(2)])
    tuning_of(store, due)
    for info in list(store.list(dataset_prefix("train"))):
        store.delete(info.key)
    with pytest.raises(InputError, match="train"):
        list(find_tunings(store, NOW))


def imported(store: Store, folder: Path, seed: int) -> tuple[str, str]:
    """Take drawn weights into the workspace; their name and key there."""
    own = put_network(open_store(str(folder)), tiny(), seed=seed)
    weights = read_weights(store, str(folder / own.weights_key), f"w{seed}")
    store_weights(store, weights)
    return weights.card.name, weights.card.weights_key


def test_imported_weights_go_once_no_name_and_no_result_refers_to_them(store: Store, tmp_path: Path) -> None:
    (_, named), (judged_name, judged), (other_name, other) = (
        imported(store, tmp_path / "theirs", seed) for seed in (1, 2, 3)
    )
    item, *_ = plan_all(store, judged_name, [suite_recipe(1)])
    run_evaluation(store, item)
    assert not list(find_imported(store, NOW))
    for name in (judged_name, other_name):
        store.delete(imported_card_key(name))
    (leftover,) = find_imported(store, NOW)
    assert (leftover.key, leftover.num_bytes) == (other, store.head(other).num_bytes)  # type: ignore[union-attr]
    assert not list(find_imported(store, 3600)), "what is young may be about to get its card"
    assert {named, judged} < {info.key for info in store.list("imported/")}
    store.put(imported_card_key("broken"), b"{")
    with pytest.raises(DamageError, match="broken"):
        list(find_imported(store, NOW))
