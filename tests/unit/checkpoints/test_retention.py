"""What retention removes, and what it never does: the last good one, what is pinned, what a fork came from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.base.store.local import LocalStore
from pipeline.base.world import SingleProcess
from pipeline.checkpoints import retention as pins
from pipeline.checkpoints.resume import resume
from pipeline.checkpoints.retention import (
    Retention,
    apply_retention,
    forked_steps,
    held_steps,
    hold_steps,
    pin_fork,
    release_steps,
    renew_steps,
)
from pipeline.records.run import (
    OrderParameters,
    RunCard,
    checkpoint_card_key,
    list_retired_cards,
    list_steps,
    run_prefix,
    step_prefix,
)
from tests.support.states import RUN, State, new_saving, same, save_steps, trained


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A run with checkpoints at 0, 10, ... 50."""
    store = LocalStore(tmp_path / "workspace")
    save_steps(new_saving(store), 0, 10, 20, 30, 40, 50)
    return store


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(), [0, 10, 20, 30, 40, 50]),
        (Retention(keep_every=20), [0, 10, 20, 30, 40, 50]),
        (Retention(keep_last=2), [0, 40, 50]),
        (Retention(keep_last=1, keep_every=20), [0, 20, 40, 50]),
        (Retention(keep_last=9), [0, 10, 20, 30, 40, 50]),
    ],
)
def test_what_is_kept(store: LocalStore, retention: Retention, kept: list[int]) -> None:
    apply_retention(store, RUN, retention)
    assert list_steps(store, RUN) == kept
    left = {info.key.split("/")[3] for info in store.list("runs/r/checkpoints/") if info.key.endswith(".safetensors")}
    assert left == {f"step-{step:08d}" for step in kept}
    assert [card.step for card in list_retired_cards(store, RUN)] == sorted({0, 10, 20, 30, 40, 50} - set(kept))


@given(
    steps=st.sets(st.integers(0, 1000), max_size=30), last=st.integers(0, 8), every=st.sampled_from([0, 1, 3, 10, 100])
)
def test_the_newest_ones_and_the_untrained_one_are_never_superfluous(steps: set[int], last: int, every: int) -> None:
    gone = set(Retention(last, every).superfluous(sorted(steps)))
    assert gone <= steps
    assert not gone & {0, *sorted(steps)[-max(last, 1) :]}
    assert not [step for step in gone if every and step % every == 0]
    if last == 0:
        assert not gone


def test_the_writer_applies_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    writer = save_steps(new_saving(store), 0, 1)
    writer._retention = Retention(keep_last=2)
    state = trained(1)
    for step in (2, 3, 4):
        writer.save_and_wait(step, step * 10, state.train(1))
    assert list_steps(store, RUN) == [0, 3, 4]
    assert writer.take_alarms() == []


def test_the_newest_one_that_is_whole_stays(store: LocalStore) -> None:
    for step in (40, 50):
        store.delete(f"{step_prefix(RUN, step)}/0001/model.safetensors")
    apply_retention(store, RUN, Retention(keep_last=2))
    assert list_steps(store, RUN) == [0, 30, 40, 50]
    state = State()
    card = resume(new_saving(store), SingleProcess(), state)
    assert card is not None
    assert card.step == 30
    assert same(state, trained(30))


def test_a_card_that_cannot_be_read_is_left_alone(store: LocalStore) -> None:
    for step in (20, 50):
        store.put(checkpoint_card_key(RUN, step), b"{")
    apply_retention(store, RUN, Retention(keep_last=1))
    assert list_steps(store, RUN) == [0, 20, 40, 50]


def test_a_card_of_another_step_is_left_alone_and_no_newest_one(store: LocalStore) -> None:
    for step in (20, 50):
        store.put(checkpoint_card_key(RUN, step), store.read(checkpoint_card_key(RUN, 10)))
    apply_retention(store, RUN, Retention(keep_last=1))
    assert list_steps(store, RUN) == [0, 20, 40, 50]


def test_what_is_pinned_stays_until_it_is_released(store: LocalStore) -> None:
    assert hold_steps(store, RUN, [10, 20, 99], "evaluation-1", 600) == [10, 20]
    assert hold_steps(store, RUN, [30], "evaluation-2", 600) == [30]
    assert held_steps(store, RUN) == {10, 20, 30, 99}
    apply_retention(store, RUN, Retention(keep_last=1))
    assert list_steps(store, RUN) == [0, 10, 20, 30, 50]
    hold_steps(store, RUN, [20], "evaluation-1", 600)
    release_steps(store, RUN, "evaluation-2")
    release_steps(store, RUN, "evaluation-3")
    apply_retention(store, RUN, Retention(keep_last=1))
    assert list_steps(store, RUN) == [0, 20, 50]


def test_a_pin_ends_by_itself_unless_it_is_renewed(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_steps(store, RUN, [10], "a", 100)
    hold_steps(store, RUN, [20], "b", 100)
    hold_steps(store, RUN, [30], "c", None)
    now = pins.time.time()
    monkeypatch.setattr(pins.time, "time", lambda: now + 90)
    assert renew_steps(store, RUN, "b", 100) == [20]
    assert renew_steps(store, RUN, "d", 100) == []
    assert held_steps(store, RUN) == {10, 20, 30}
    monkeypatch.setattr(pins.time, "time", lambda: now + 165)
    assert held_steps(store, RUN) == {20, 30}, "a minute later than it says: clocks differ"
    monkeypatch.setattr(pins.time, "time", lambda: now + 1e9)
    assert held_steps(store, RUN) == {30}


def test_a_pin_that_cannot_be_read_counts_for_all(store: LocalStore) -> None:
    hold_steps(store, RUN, [10], "a", 100)
    store.put(f"{run_prefix(RUN)}/pins/a.json", b'{"steps": [1')
    apply_retention(store, RUN, Retention(keep_last=1))
    assert list_steps(store, RUN) == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("owner", ["", "a/b", "..", "a b", "ü", "x" * 101])
def test_a_name_that_is_no_file_name_owns_nothing(store: LocalStore, owner: str) -> None:
    with pytest.raises(InputError, match="cannot own a pin"):
        hold_steps(store, RUN, [10], owner, 1)


class Slow(LocalStore):
    """Somebody pins a step just before, or just after, its card is removed."""

    when = "before"

    def delete(self, key: str) -> None:
        """See Store."""
        mine = key == checkpoint_card_key(RUN, 10)
        if mine and self.when == "before":
            assert hold_steps(LocalStore(self.root), RUN, [10], "late", 60) == [10]
        super().delete(key)
        if mine and self.when == "after":
            assert hold_steps(LocalStore(self.root), RUN, [10], "late", 60) == [], "it is told that it comes too late"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_pin_in_the_middle_of_a_removal_is_seen(store: LocalStore, when: str) -> None:
    slow = Slow(store.root)
    slow.when = when
    apply_retention(slow, RUN, Retention(keep_last=4))
    assert list_steps(store, RUN) == [0, 10, 20, 30, 40, 50], "the card is back, and its files are there"
    state = State()
    for step in (20, 30, 40, 50):
        store.delete(checkpoint_card_key(RUN, step))
    assert resume(new_saving(store), SingleProcess(), state)
    assert same(state, trained(10))


def run_card(name: str, parent: str | None) -> RunCard:
    order = OrderParameters(seed=0, partitions=1, window=1, batch_size=1)
    return RunCard(
        name=name,
        fingerprint="f",
        fingerprinted={},
        recipe={},
        dataset_name="d",
        dataset_digest="d",
        order=order,
        code_version="c",
        parent=parent,
    )


def test_what_a_fork_came_from_stays(store: LocalStore) -> None:
    pin_fork(store, "r@20", "child")
    for name, parent in (("second", "r@30"), ("third", "other@40"), ("fourth", None)):
        store.put(f"runs/{name}/run.json", run_card(name, parent).to_json())
    store.put("runs/broken/run.json", b"{")
    assert forked_steps(store, RUN) == {30}
    apply_retention(store, RUN, Retention(keep_last=1))
    assert list_steps(store, RUN) == [0, 20, 30, 50]
    with pytest.raises(InputError, match=r"no checkpoint r@10 .* its steps: 0, 20, 30, 50"):
        pin_fork(store, "r@10", "late")


def test_a_step_that_was_removed_may_be_saved_again(store: LocalStore) -> None:
    apply_retention(store, RUN, Retention(keep_last=1))
    saving = replace(new_saving(store))
    save_steps(saving, 10)
    assert list_steps(store, RUN) == [0, 10, 50]
    assert [card.step for card in list_retired_cards(store, RUN)] == [20, 30, 40]
