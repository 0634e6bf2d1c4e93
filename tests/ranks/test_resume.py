"""A run that is ended after a checkpoint and resumed by fresh processes goes on bit for bit as if nothing had been."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch.distributed as dist

from pipeline.base.store import open_store
from pipeline.base.world import World
from pipeline.checkpoints.card import take_attempt
from pipeline.checkpoints.resume import resume
from pipeline.checkpoints.save import SaveContext
from pipeline.checkpoints.state import FragmentSource
from pipeline.checkpoints.writer import CheckpointWriter
from pipeline.models.weights import ModelDescription, pack_weights
from pipeline.records.record import read_record
from pipeline.records.run import CheckpointCard, checkpoint_card_key
from pipeline.train.distributed import ProcessGroup, current_collective, gather_full_state
from pipeline.train.engine import DeepSpeedEngine
from pipeline.train.recipe import EngineRecipe
from tests.ranks.training import BATCH, CONFIG, partitioned, train_some
from tests.support.ranks import spawn_ranks

STEPS, SAVED_AT = 7, 3
STAGES = (1, 2, 3)
pytestmark = pytest.mark.timeout(300)


def saving_of(workspace: str, stage: int) -> SaveContext:
    """A new attempt of the stage's run. Every rank has to call it."""
    store, collective = open_store(workspace), current_collective()
    run = f"zero-{stage}"
    attempt = collective.broadcast(take_attempt(store, run) if collective.world.is_first else None)
    return SaveContext(store, run, attempt, stage, "bf16", "f", "d", "code")


def engine_of(stage: int, seed: int) -> DeepSpeedEngine:
    """bf16 with dropout, whose draws have to come back as well."""
    recipe = EngineRecipe(zero_stage=stage, precision="bf16")
    return partitioned(World.from_environment(), recipe, seed=seed, dropout=0.2)


def hexes(results: list[Any]) -> list[tuple[str, str]]:
    """Losses and norms to the last bit."""
    return [(row.loss.hex(), row.grad_norm.hex()) for row in results]


def undisturbed(workspace: str) -> dict[int, list[tuple[str, str]]]:
    """On a rank: train every stage to the end, with one checkpoint on the way, written while training goes on."""
    found = {}
    for stage in STAGES:
        engine, group = engine_of(stage, seed=1), dist.new_group(backend="gloo")

        def assemble(source: FragmentSource, kind: str, group: Any = group) -> Any:
            return gather_full_state(source.fragments(), source.shapes(), kind, group)

        pack = partial(pack_weights, description=ModelDescription(CONFIG, {}, ("a", "b", "c", "d")))
        background = ProcessGroup(World.from_environment(), group)
        writer = CheckpointWriter(saving_of(workspace, stage), background, assemble, pack)

        def at_step(step: int, engine: DeepSpeedEngine = engine, writer: CheckpointWriter = writer) -> None:
            if step == SAVED_AT:
                writer.save(step, step * BATCH, engine)

        found[stage] = hexes(train_some(engine, World.from_environment(), STEPS, at_step=at_step))
        writer.close()
    return found


def resumed(workspace: str) -> dict[int, tuple[int, int, list[tuple[str, str]]]]:
    """On a fresh rank whose network starts elsewhere: (step, position, what follows) of every stage."""
    found = {}
    for stage in STAGES:
        engine = engine_of(stage, seed=99)
        card = resume(saving_of(workspace, stage), current_collective(), engine)
        assert card is not None
        results = train_some(engine, World.from_environment(), STEPS, first_step=card.step)
        found[stage] = (card.step, card.position, hexes(results))
    return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Holds the checkpoints of this module."""
    return str(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def calm(workspace: str) -> list[dict[int, list[tuple[str, str]]]]:
    """The undisturbed runs, by rank and stage."""
    return spawn_ranks(undisturbed, 2, workspace, limit_seconds=200)


@pytest.fixture(scope="module")
def again(workspace: str, calm: object) -> list[dict[int, tuple[int, int, list[tuple[str, str]]]]]:
    """The resumed ones."""
    return spawn_ranks(resumed, 2, workspace, limit_seconds=200)


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
    assert card.updates == SAVED_AT
