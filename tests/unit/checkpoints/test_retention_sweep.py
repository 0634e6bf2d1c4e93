"""Orphans are what no card will ever name; and weights to start from are verified."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store.local import LocalStore
from pipeline.base.world import SingleProcess
from pipeline.checkpoints.resume import resume
from pipeline.checkpoints.retention import Retention, apply_retention, find_orphans, hold_steps
from pipeline.checkpoints.warm_start import read_initial
from pipeline.records.run import RETIRED, checkpoint_card_key, list_steps, read_checkpoint_card, step_prefix
from tests.support.states import RUN, State, new_saving, save_steps


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """An empty workspace."""
    return LocalStore(tmp_path / "workspace")


def orphans(store: LocalStore) -> list[str]:
    return [orphan.key.removeprefix("runs/r/checkpoints/step-000000") for orphan in find_orphans(store, RUN)]


def test_a_run_in_order_has_none(store: LocalStore) -> None:
    assert orphans(store) == []
    save_steps(new_saving(store), 0, 10, 20)
    assert orphans(store) == []


def test_what_other_attempts_left(store: LocalStore) -> None:
    save_steps(new_saving(store), 10)
    store.put(f"{step_prefix(RUN, 10)}/0002/rank-00000.safetensors", b"lost against the card")
    store.put(f"{step_prefix(RUN, 20)}/0001/rank-00000.safetensors", b"killed")
    store.put(f"{step_prefix(RUN, 30)}/0002/rank-00000.safetensors", b"being written")
    assert new_saving(store).attempt == "0002"
    expected = ["10/0002/rank-00000.safetensors", "20/0001/rank-00000.safetensors"]
    assert orphans(store) == expected[1:], "attempt 2 has committed nothing yet: it may be at any step"
    save_steps(new_saving(store), 40)
    assert orphans(store) == [*expected, "30/0002/rank-00000.safetensors"]


def test_what_the_newest_attempt_gave_up(store: LocalStore) -> None:
    saving = new_saving(store)
    store.put(f"{step_prefix(RUN, 10)}/0001/rank-00000.safetensors", b"failed")
    assert orphans(store) == []
    save_steps(saving, 20)
    store.put(f"{step_prefix(RUN, 30)}/0001/rank-00000.safetensors", b"being written")
    assert orphans(store) == ["10/0001/rank-00000.safetensors"]


def test_evidence_and_other_peoples_files_stay(store: LocalStore) -> None:
    save_steps(new_saving(store), 10, 20)
    store.delete(f"{step_prefix(RUN, 20)}/0001/model.safetensors")
    assert resume(new_saving(store), SingleProcess(), State())
    store.put("runs/r/checkpoints/notes.txt", b"mine")
    store.put(f"{step_prefix(RUN, 10)}/plot.png", b"mine")
    assert orphans(store) == [f"20/0001/{name}.safetensors" for name in ("ema", "rank-00000")]
    assert store.head(f"{step_prefix(RUN, 20)}/damaged-0002.json") is not None


def test_a_removal_that_was_killed_is_ended_by_the_sweep_unless_somebody_reads(store: LocalStore) -> None:
    save_steps(new_saving(store), 10, 20, 30)
    data = store.read(checkpoint_card_key(RUN, 10))
    store.put(f"{step_prefix(RUN, 10)}/{RETIRED}", data)
    store.delete(checkpoint_card_key(RUN, 10))
    hold_steps(store, RUN, [10], "reader", 60)
    assert orphans(store) == []
    store.delete("runs/r/pins/reader.json")
    assert orphans(store) == [f"10/0001/{name}.safetensors" for name in ("ema", "model", "rank-00000")]


def test_with_a_card_that_cannot_be_read_nothing_is_an_orphan(store: LocalStore) -> None:
    save_steps(new_saving(store), 10)
    store.put(f"{step_prefix(RUN, 20)}/0001/rank-00000.safetensors", b"killed")
    new_saving(store)
    assert orphans(store)
    store.put(checkpoint_card_key(RUN, 10), b"{")
    with pytest.raises(DamageError, match=r"checkpoint\.json is not valid JSON"):
        orphans(store)


def test_with_a_card_of_another_step_nothing_is_an_orphan(store: LocalStore) -> None:
    save_steps(new_saving(store), 10, 20)
    store.put(checkpoint_card_key(RUN, 20), store.read(checkpoint_card_key(RUN, 10)))
    new_saving(store)
    with pytest.raises(DamageError, match=r"step-00000020/checkpoint\.json is the card of r@10, not of r@20"):
        orphans(store)
    with pytest.raises(DamageError, match="is the card of r@10"):
        read_checkpoint_card(store, RUN, 20)


def test_retention_leaves_no_orphan(store: LocalStore) -> None:
    save_steps(new_saving(store), 10, 20, 30)
    apply_retention(store, RUN, Retention(keep_last=1))
    assert orphans(store) == []
    assert list_steps(store, RUN) == [30]


def test_weights_to_start_from(store: LocalStore, tmp_path: Path) -> None:
    save_steps(new_saving(store), 10)
    card = read_checkpoint_card(store, RUN, 10)
    weights = store.read(f"{step_prefix(RUN, 10)}/{card.weights.name}")
    assert read_initial(store, "r@10", {}) == weights
    assert read_initial(store, "r@10", {}, ema=True) == store.read(f"{step_prefix(RUN, 10)}/0001/ema.safetensors")
    (tmp_path / "mine.safetensors").write_bytes(weights)
    assert read_initial(store, str(tmp_path / "mine.safetensors"), {}) == weights
    assert read_initial(store, (tmp_path / "mine.safetensors").as_uri(), {}) == weights


@pytest.mark.parametrize(
    ("init", "said"),
    [
        ("r@20", "no checkpoint r@20"),
        ("r", "names no checkpoint"),
        ("/nowhere/at-all.safetensors", "there is no /nowhere/at-all.safetensors"),
        ("/nowhere/model.pt", "names no checkpoint"),
        ("http://host/x.safetensors", "http: URIs like this are not read"),
    ],
)
def test_weights_that_are_not_there(store: LocalStore, init: str, said: str) -> None:
    save_steps(new_saving(store), 10, kinds=("weight",))
    with pytest.raises(InputError, match=said):
        read_initial(store, init, {})
    with pytest.raises(InputError, match="has no moving average"):
        read_initial(store, "r@10", {}, ema=True)


def test_weights_that_are_damaged(store: LocalStore) -> None:
    save_steps(new_saving(store), 10)
    key = f"{step_prefix(RUN, 10)}/0001/model.safetensors"
    data = store.read(key)
    store.put(key, data[:-1] + b"\x01")
    with pytest.raises(DamageError, match="its bytes are not those"):
        read_initial(store, "r@10", {})
    store.delete(key)
    with pytest.raises(DamageError, match="is missing"):
        read_initial(store, "r@10", {})
