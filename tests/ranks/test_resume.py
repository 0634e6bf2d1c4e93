"""A run that is ended after a checkpoint and resumed by fresh processes goes on bit for bit as if nothing had been."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import MismatchError
from pipeline.base.store import open_store
from pipeline.base.world import World
from pipeline.checkpoints.attempts import take_attempt
from pipeline.checkpoints.resume import resume_newest
from pipeline.checkpoints.save import Saving, save_checkpoint
from pipeline.models.weights import ModelDescription, pack_weights
from pipeline.records.record import read_record
from pipeline.records.run import CheckpointCard, checkpoint_card_key
from pipeline.train.collective import current_collective
from pipeline.train.engine import DeepSpeedEngine, state_folder
from pipeline.train.recipe import EngineRecipe
from tests.ranks.training import BATCH, CONFIG, partitioned, train_some
from tests.support.ranks import spawn_ranks

STEPS, SAVED_AT = 7, 3
STAGES = (1, 2, 3)
pytestmark = pytest.mark.timeout(150)


def saving_of(workspace: str, stage: int, fingerprint: str = "f") -> Saving:
    """A new attempt of the stage's run. Every rank has to call it."""
    store, collective = open_store(workspace), current_collective()
    run = f"zero-{stage}"
    attempt = collective.broadcast(take_attempt(store, run) if collective.world.is_first else None)
    return Saving(store, run, attempt, stage, "bf16", fingerprint, "d", "code")


def engine_of(stage: int, seed: int) -> DeepSpeedEngine:
    """bf16 with dropout, whose draws have to come back as well."""
    recipe = EngineRecipe(zero_stage=stage, precision="bf16")
    return partitioned(World.from_environment(), recipe, seed=seed, dropout=0.2)


def hexes(results: list[Any]) -> list[tuple[str, str]]:
    """Losses and norms to the last bit."""
    return [(row.loss.hex(), row.grad_norm.hex()) for row in results]


def save(engine: DeepSpeedEngine, saving: Saving, step: int) -> None:
    """As the worker does it."""
    collective = current_collective()
    with tempfile.TemporaryDirectory() as scratch:
        engine.write_state(Path(scratch))
        weights = pack_weights(engine.full_weights(), ModelDescription(CONFIG, {}, ("a", "b", "c", "d")))
        first = collective.world.is_first
        save_checkpoint(saving, collective, step, step * BATCH, Path(scratch), weights if first else None)


def undisturbed(workspace: str) -> dict[int, list[tuple[str, str]]]:
    """On a rank: train every stage to the end, with one checkpoint on the way."""
    found = {}
    for stage in STAGES:
        saving, engine = saving_of(workspace, stage), engine_of(stage, seed=1)

        def at_step(step: int, engine: DeepSpeedEngine = engine, saving: Saving = saving) -> None:
            if step == SAVED_AT:
                save(engine, saving, step)

        found[stage] = hexes(train_some(engine, World.from_environment(), STEPS, at_step=at_step))
    return found


def resumed(workspace: str) -> dict[int, tuple[int, int, list[tuple[str, str]]]]:
    """On a fresh rank whose network starts elsewhere: (step, position, what follows) of every stage."""
    found = {}
    for stage in STAGES:
        saving, engine = saving_of(workspace, stage), engine_of(stage, seed=99)
        with tempfile.TemporaryDirectory() as scratch:
            card = resume_newest(saving, current_collective(), state_folder(Path(scratch)))
            assert card is not None
            engine.read_state(Path(scratch))
        results = train_some(engine, World.from_environment(), STEPS, first_step=card.step)
        found[stage] = (card.step, card.position, hexes(results))
    return found


def refused(workspace: str) -> str:
    """On a single rank: what is said about a checkpoint of two."""
    with tempfile.TemporaryDirectory() as scratch, pytest.raises(MismatchError) as caught:
        resume_newest(saving_of(workspace, 2), current_collective(), Path(scratch))
    return str(caught.value)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Holds the checkpoints of this module."""
    return str(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def calm(workspace: str) -> list[dict[int, list[tuple[str, str]]]]:
    """The undisturbed runs, by rank and stage."""
    return spawn_ranks(undisturbed, 2, workspace)


@pytest.fixture(scope="module")
def again(workspace: str, calm: object) -> list[dict[int, tuple[int, int, list[tuple[str, str]]]]]:
    """The resumed ones."""
    return spawn_ranks(resumed, 2, workspace)


@pytest.mark.parametrize("stage", STAGES)
def test_what_follows_is_equal_to_the_last_bit(calm: list[Any], again: list[Any], stage: int) -> None:
    for before, after in zip(calm, again, strict=True):
        step, position, following = after[stage]
        assert (step, position) == (SAVED_AT, SAVED_AT * BATCH)
        assert len(following) == STEPS - SAVED_AT
        assert following == before[stage][SAVED_AT:]
        assert len(set(following)) == len(following)


@pytest.mark.parametrize("stage", STAGES)
def test_the_card_tells_what_it_is_of(calm: object, workspace: str, stage: int) -> None:
    card = read_record(CheckpointCard, open_store(workspace), checkpoint_card_key(f"zero-{stage}", SAVED_AT))
    assert (card.world_size, card.zero_stage, card.dtype, card.attempt) == (2, stage, "bf16", "0001")


def test_another_world_size_is_refused_by_name(calm: object, workspace: str) -> None:
    assert "world_size: 2 -> 1" in spawn_ranks(refused, 1, workspace)[0]
