"""A rank killed at any point of a save, or of a removal: the newest complete checkpoint is used, never a mix.

Real ranks over gloo, and a real folder.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pipeline.base.failpoints import VARIABLE
from pipeline.base.store import Store, open_store
from pipeline.base.world import Collective, SingleProcess, World
from pipeline.checkpoints.card import check_complete
from pipeline.checkpoints.resume import resume
from pipeline.checkpoints.retention import Retention, find_orphans
from pipeline.records.run import CheckpointCard, list_checkpoint_cards, list_steps
from tests.support.states import (
    KINDS,
    RUN,
    State,
    alone_writer,
    begin,
    new_saving,
    rank_writer,
    restored,
    run_ranks,
    same,
    save_steps,
    trained,
)

WORLD, BEFORE, AT = 2, 10, 20
OWN = ("after-snapshot", "before-file", "in-file", "after-file")  # of every rank
FIRST = (  # of rank 0 alone
    "before-model.safetensors",
    "after-model.safetensors",
    "before-ema.safetensors",
    "after-ema.safetensors",
    "before-card",
    "at-card",
    "after-card",
)
RETIRING = ("before-retire", "in-retire", "in-retire-files")
PLACES = [(point, rank) for point in OWN for rank in range(WORLD)] + [(point, 0) for point in FIRST]


def go_on(collective: Collective, workspace: str, steps: list[int]) -> tuple[int, dict[tuple[str, str, int], bytes]]:
    """On a rank: resume, train and save through *steps*; (step resumed from, the state in the end)."""
    saving, state = begin(collective, workspace), State(collective.world, "each", seed=4)
    card = resume(saving, collective, state)
    if card is None:
        state = State(collective.world, "each")
    writer = rank_writer(collective, saving)
    for step in steps:
        writer.save(step, step * 10, state.train(step - state.updates))
    writer.wait()
    return (card.step if card else 0), state.bits()


def go_on_sparing(collective: Collective, workspace: str, steps: list[int]) -> None:
    """The same, keeping one checkpoint only; the place to die is told once there is something to remove."""
    saving, state = begin(collective, workspace), State(collective.world)
    writer = rank_writer(collective, saving, retention=Retention(keep_last=1))
    for step in steps:
        writer.save(step, step * 10, state.train(step - state.updates))
        writer.wait()


def check_every_card(store: Store) -> list[CheckpointCard]:
    """Every card that is there is of a checkpoint that is whole, of one attempt and one moment."""
    cards = list_checkpoint_cards(store, RUN)
    for card in cards:
        assert check_complete(store, card) is None
        assert {file.name.partition("/")[0] for file in card.every_file} == {card.attempt}
        assert same(restored(store, card), trained(card.step, kinds=tuple(sorted(KINDS))))
    return cards


@pytest.mark.parametrize(("point", "rank"), PLACES)
def test_killed_while_saving(tmp_path: Path, point: str, rank: int) -> None:
    store = open_store(str(tmp_path))
    save_steps(new_saving(store), BEFORE)
    kill = {rank: {VARIABLE: f"checkpoint.{point}"}}
    ended = run_ranks(go_on, WORLD, str(tmp_path), [AT], env=kill)
    assert ended[rank].code == -signal.SIGKILL
    cards = check_every_card(store)
    expected = [BEFORE, AT] if point == "after-card" else [BEFORE]
    assert [card.step for card in cards] == expected
    saving, state = new_saving(store), State(seed=4)
    card = resume(saving, SingleProcess(), state)
    assert card is not None
    assert card.step == expected[-1]
    alone_writer(saving).save_and_wait(AT + 5, AT * 10 + 50, state.train(AT + 5 - card.step))
    assert same(state, trained(AT + 5))
    assert list_steps(store, RUN) == [*expected, AT + 5]
    check_every_card(store)
    for orphan in find_orphans(store, RUN):
        assert orphan.key.split("/")[3:5] == [f"step-{AT:08d}", "0002"]
        store.delete(orphan.key)
    check_every_card(store)


@pytest.mark.parametrize("point", RETIRING)
def test_killed_while_removing(tmp_path: Path, point: str) -> None:
    store = open_store(str(tmp_path))
    kill = {0: {VARIABLE: f"checkpoint.{point}"}}
    ended = run_ranks(go_on_sparing, WORLD, str(tmp_path), [10, 20, 30], env=kill)
    assert ended[0].code == -signal.SIGKILL
    cards = check_every_card(store)
    assert [card.step for card in cards] == ([10, 20] if point == "before-retire" else [20])
    state = State()
    card = resume(new_saving(store), SingleProcess(), state)
    assert card is not None
    assert card.step == 20
    assert same(state, trained(20))
    found = [orphan.key for orphan in find_orphans(store, RUN)]
    assert bool(found) == (point != "before-retire")
    assert all("step-00000010/0001/" in key for key in found)


@pytest.mark.parametrize("rank", range(WORLD))
def test_killed_before_there_is_any(tmp_path: Path, rank: int) -> None:
    kill = {rank: {VARIABLE: "checkpoint.after-file"}}
    ended = run_ranks(go_on, WORLD, str(tmp_path), [10], env=kill)
    assert ended[rank].code == -signal.SIGKILL
    store = open_store(str(tmp_path))
    assert list_steps(store, RUN) == []
    again = run_ranks(go_on, WORLD, str(tmp_path), [10])
    for number, end in enumerate(again):
        assert end.result == (0, State(World(number, WORLD), "each").train(10).bits())
    check_every_card(store)
    assert list_steps(store, RUN) == [10]


def test_other_numbers_of_ranks_go_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    step = 0
    for world in (2, 1, 3, 2):
        ended = run_ranks(go_on, world, str(tmp_path), [step + 5])
        assert [end.error for end in ended] == [""] * world
        assert {end.result[0] for end in ended} == {step}
        step += 5
    cards = check_every_card(open_store(str(tmp_path)))
    assert [(card.step, card.world_size) for card in cards] == [(5, 2), (10, 1), (15, 3), (20, 2)]
