"""How a rank that gives up is told to its own driver, and to no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import DamageError, FailedError, StoreAccessError, SupersededError, VitpipeError
from pipeline.base.progress import Silent
from pipeline.base.store.local import LocalStore
from pipeline.pretrain import stage, worker
from pipeline.pretrain.plan import make_plan
from pipeline.pretrain.worker import failure_key, pretrain_worker
from pipeline.records.run import checkpoint_card_key
from tests.support.datasets import make_dataset
from tests.unit.pretrain.test_recipe import card, recipe


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "workspace")


def config(store: LocalStore, token: str) -> dict[str, Any]:
    """What the driver of *token* gives to a rank."""
    plan = make_plan(recipe("run=small"), card())
    return {"workspace": store.uri, "stores": {}, "plan": plan, "run": None, "token": token}


def ending(monkeypatch: pytest.MonkeyPatch, error: VitpipeError | None) -> list[str]:
    """Training is played: it ends with *error*. How often it began."""
    begun: list[str] = []

    def work(*_: Any) -> int:
        begun.append("")
        if error is not None:
            raise error
        return 1

    monkeypatch.setattr(worker, "run_attempt", work)
    return begun


def test_what_a_superseded_rank_leaves_does_not_end_the_ranks_of_the_newer_driver(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(monkeypatch, SupersededError("attempt 0001 was superseded by attempt 0002"))
    pretrain_worker(config(store, "older"))
    begun = ending(monkeypatch, None)
    pretrain_worker(config(store, "newer"))
    assert len(begun) == 1
    pretrain_worker(config(store, "older"))
    assert len(begun) == 1, "those of its own driver are not begun again"


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(DamageError("a shard is damaged"), 1), (StoreAccessError("the store is away"), 1)],
)
def test_a_rank_leaves_why_it_gave_up(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, error: VitpipeError, exit_code: int
) -> None:
    ending(monkeypatch, error)
    pretrain_worker(config(store, "t"))
    told = json.loads(store.read(failure_key("small", "t")))
    assert told == {"exit_code": exit_code, "message": str(error)}


@pytest.mark.parametrize("refusal", [FailedError("No space left on device"), StoreAccessError("read-only")])
def test_where_the_store_takes_nothing_the_error_itself_is_raised(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, refusal: VitpipeError
) -> None:
    def refuse(*_: Any) -> None:
        raise refusal

    monkeypatch.setattr(LocalStore, "put", refuse)
    ending(monkeypatch, FailedError("3 checkpoints in a row were not saved"))
    with pytest.raises(FailedError, match="3 checkpoints in a row were not saved"):
        pretrain_worker(config(store, "t"))


def driven(store: LocalStore, monkeypatch: pytest.MonkeyPatch, played: Any) -> list[int]:
    """The stage with *played* (config) in the place of Ray and its ranks."""
    make_dataset(store, "d", num_samples=8, size=8, max_samples=8, num_classes=4)
    monkeypatch.setattr(stage, "launch", lambda _worker, config, *_, **__: played(config))
    plan, run = stage.check(store, {}, recipe(), code_version="code")
    return stage.pretrain(store, {}, plan, run, progress=Silent())


def test_the_driver_tells_what_its_ranks_left_and_takes_it_away(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(config: dict[str, Any]) -> bool:
        store.put(failure_key("r", config["token"]), b'{"exit_code": 3, "message": "stopped at step 7"}')
        store.put(failure_key("r", "another"), b'{"exit_code": 1, "message": "superseded"}')
        return False

    with pytest.raises(VitpipeError, match="stopped at step 7") as caught:
        driven(store, monkeypatch, leave)
    assert caught.value.exit_code == 3
    assert [info.key for info in store.list("runs/r/failures/")] == [failure_key("r", "another")]


@pytest.mark.parametrize(("is_stopped", "exit_code"), [(True, 3), (False, 1)])
def test_ranks_that_end_early_were_stopped_or_failed(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, is_stopped: bool, exit_code: int
) -> None:
    with pytest.raises(VitpipeError) as caught:
        driven(store, monkeypatch, lambda _: is_stopped)
    assert caught.value.exit_code == exit_code


def test_a_sigterm_after_the_last_step_changes_nothing(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(_: dict[str, Any]) -> bool:
        store.put(checkpoint_card_key("r", 100), b"{}")
        return True

    assert driven(store, monkeypatch, finish) == [100]


def test_a_store_that_goes_away_meanwhile_is_no_refusal(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def go_away(_: dict[str, Any]) -> bool:
        def away(*_: Any) -> Any:
            raise StoreAccessError("the store is away", "try again")

        for name in ("read", "list", "head", "put"):
            monkeypatch.setattr(LocalStore, name, away)
        raise StoreAccessError("the store is away", "try again")

    with pytest.raises(FailedError, match="the store is away - try again") as caught:
        driven(store, monkeypatch, go_away)
    assert caught.value.exit_code == 1
