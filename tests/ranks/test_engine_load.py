"""State goes from engine to engine to the last bit: into fresh and used ones, across ZeRO stages and world sizes."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.base.errors import MismatchError, RecipeError
from pipeline.train.engine import DeepSpeedEngine
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe
from tests.ranks.engines import OPTIMIZER, Remembered, differing, hexes, partitioned, remember, single, steps
from tests.support.ranks import spawn_ranks

SAVED_AT, LAST = 3, 8
STAGES = (0, 1, 2, 3)
SGD = OptimizerRecipe(name="sgd", learning_rate=0.02, weight_decay=0.1, clip=0.5, ema=0.9)
CASES: list[tuple[Any, ...]] = [(2, "fp32", 0), (3, "fp32", 0), *((stage, "bf16", 0) for stage in STAGES)]
CASES += [(1, "bf16", 2), (3, "fp32", 0, SGD)]
# the rest, beside; stage 1 with micro-batches in bf16 is another optimizer of DeepSpeed's
REST: list[tuple[Any, ...]] = [(0, "fp32", 0), (1, "fp32", 0), *((stage, "bf16", 2) for stage in (0, 2, 3))]
REST += [(stage, precision, 0, SGD) for stage in STAGES for precision in ("fp32", "bf16")]
WAYS = list(pairwise((0, 1, 3, 2, 0)))  # from stage, to stage
OTHER_WAYS = [(1, 0), (2, 1), (0, 2), (1, 2), (0, 3), (2, 3), (3, 0), (3, 1)]
LIMIT = 280.0
pytestmark = pytest.mark.timeout(LIMIT + 30)


def engine_of(
    stage: int, precision: str = "fp32", micro: int = 0, optimizer: OptimizerRecipe = OPTIMIZER, **changes: Any
) -> DeepSpeedEngine:
    """Parameters of more than 30 elements are partitioned at stage 3, the others whole on every rank."""
    recipe = EngineRecipe(zero_stage=stage, precision=precision, micro_batch_size=micro, persistence_threshold=30)
    return partitioned(recipe, optimizer, **changes)


def resumed(stage: int, precision: str, micro: int, optimizer: OptimizerRecipe = OPTIMIZER) -> dict[str, Any]:
    """On a rank: what follows a save in the undisturbed engine, in a fresh one, and in one that did other updates."""

    def engine(seed: int) -> DeepSpeedEngine:
        return engine_of(stage, precision, micro, optimizer, seed=seed, dropout=0.2)

    calm = engine(1)
    list(steps(calm, SAVED_AT, micro=micro))
    saved = remember(calm)
    told: dict[str, Any] = {"calm": hexes(steps(calm, LAST, SAVED_AT, micro)), "state": remember(calm)}
    for name, done in (("fresh", 0), ("used", 2)):
        other = engine(99)
        list(steps(other, done, micro=micro))
        other.load(saved)
        told[f"{name} loaded"] = differing(remember(other).whole, saved.whole)
        told[name] = hexes(steps(other, LAST, SAVED_AT, micro))
        told[f"{name} at the end"] = differing(remember(other).whole, told["state"].whole)
        told[f"{name} updates"] = other.updates
    return told


def at_two(folder: str) -> dict[str, Any]:
    """On each of two ranks: the cases resumed; the ways between stages; what is read; files for one rank."""
    states = {stage: remembered_at(stage) for stage in STAGES}
    if dist.get_rank() == 0:
        for stage, state in states.items():
            state.write(Path(folder) / f"two-{stage}")
    return {
        "cases": [resumed(*case) for case in CASES],
        "ways": {way: across(way[1], states[way[0]]) for way in WAYS},
        "spread": {stage: asked_of(stage, states[stage]) for stage in STAGES},
        "refused": [refused(stage) for stage in (0, 3)],
        "fp16": refused_fp16(),
    }


def all_the_rest() -> dict[str, Any]:
    """On each of two ranks: what takes longer."""
    states = {stage: remembered_at(stage) for stage in STAGES}
    return {
        "cases": [resumed(*case) for case in REST],
        "ways": {way: across(way[1], states[way[0]]) for way in OTHER_WAYS},
    }


def remembered_at(stage: int) -> Remembered:
    """The state of *stage* after some updates."""
    engine = engine_of(stage)
    list(steps(engine, SAVED_AT))
    return remember(engine)


def across(stage: int, state: Remembered) -> dict[str, Any]:
    """*state* loaded into *stage*: what differs, and the losses that follow."""
    engine = engine_of(stage, seed=99)
    engine.load(state)
    wrong = differing(remember(engine).whole, state.whole)
    return {"wrong": wrong, "losses": [row.loss for row in steps(engine, LAST, SAVED_AT)]}


def asked_of(stage: int, state: Remembered) -> tuple[int, int]:
    """(elements of the moments that a rank asks a reader for, that there are)."""
    state.asked.clear()
    engine_of(stage).load(state)
    asked = sum(stop - start for kind, _, start, stop in state.asked if kind == "exp_avg")
    return asked, sum(tensor.numel() for tensor in state.whole["exp_avg"].values())


def refused(stage: int) -> str:
    """What is said about the state of another network, and that nothing was changed by it."""
    engine = engine_of(stage)
    before = copy.deepcopy(remember(engine))
    other = remember(engine)
    other.whole_shapes = other.whole_shapes | {"head.bias": (6,)}
    with pytest.raises(MismatchError) as caught:
        engine.load(other)
    assert differing(remember(engine).whole, before.whole) == []
    return str(caught.value)


def refused_fp16() -> str:
    """What is said where the device computes no fp16."""
    with pytest.raises(RecipeError) as caught:
        engine_of(2, "fp16")
    return str(caught.value)


def at_one(folder: str) -> dict[int, dict[str, Any]]:
    """On a single rank: what two ranks wrote, and files for two."""
    found = {}
    for stage in STAGES:
        state = Remembered.of(Path(folder) / f"two-{stage}")
        found[stage] = across(stage, state)
        engine = engine_of((stage + 1) % 4)
        engine.load(state)
        list(steps(engine, SAVED_AT + 2, SAVED_AT))
        remember(engine).write(Path(folder) / f"one-{stage}")
    return found


def at_two_again(folder: str) -> dict[int, dict[str, Any]]:
    """On each of two ranks: what one rank wrote after two more updates."""
    found = {}
    for stage in STAGES:
        engine = engine_of(stage)
        state = Remembered.of(Path(folder) / f"one-{stage}")
        engine.load(state)
        wrong = differing(remember(engine).whole, state.whole)
        losses = [row.loss for row in steps(engine, LAST, SAVED_AT + 2)]
        found[stage] = {"wrong": wrong, "losses": losses, "updates": engine.updates}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Holds what goes from one world to another."""
    return str(tmp_path_factory.mktemp("states"))


@pytest.fixture(scope="module")
def two(folder: str) -> list[dict[Any, Any]]:
    """What each of two ranks found."""
    return spawn_ranks(at_two, 2, folder, limit_seconds=LIMIT)


@pytest.fixture(scope="module")
def one(folder: str, two: object) -> dict[int, dict[str, Any]]:
    """What one rank found afterwards."""
    found: dict[int, dict[str, Any]] = spawn_ranks(at_one, 1, folder)[0]
    return found


@pytest.fixture(scope="module")
def calm() -> list[float]:
    """The losses of one process that was never saved, from ``SAVED_AT`` on."""
    torch.set_num_threads(1)
    return [row.loss for row in steps(single(), LAST)][SAVED_AT:]


def check_cases(ranks: list[Any], cases: list[tuple[Any, ...]]) -> None:
    """What follows a save is the same to the last bit in every engine that was loaded."""
    for rank in ranks:
        assert len(rank["cases"]) == len(cases)
        for case, told in zip(cases, rank["cases"], strict=True):
            assert len(set(told["calm"])) == LAST - SAVED_AT
            for name in ("fresh", "used"):
                assert told[f"{name} loaded"] == [], (case, name)
                assert told[name] == told["calm"], (case, name)
                assert told[f"{name} at the end"] == [], (case, name)
                assert told[f"{name} updates"] == LAST


def check_ways(ranks: list[Any], calm: list[float], ways: list[tuple[int, int]]) -> None:
    """A state goes to the last bit from stage to stage; the losses stay near those of one process."""
    for rank in ranks:
        assert list(rank["ways"]) == ways
        for way, told in rank["ways"].items():
            assert told["wrong"] == [], way
            assert told["losses"] == pytest.approx(calm, rel=1e-4), way


def test_what_follows_is_equal_to_the_last_bit(two: list[Any]) -> None:
    check_cases(two, CASES)


def test_a_stage_goes_on_from_another(two: list[Any], calm: list[float]) -> None:
    check_ways(two, calm, WAYS)


@pytest.mark.long
def test_so_it_is_in_every_case_and_every_way(calm: list[float]) -> None:
    ranks = spawn_ranks(all_the_rest, 2, limit_seconds=LIMIT)
    check_cases(ranks, REST)
    check_ways(ranks, calm, OTHER_WAYS)


@pytest.mark.parametrize("stage", STAGES)
def test_one_rank_goes_on_from_two(one: dict[int, Any], calm: list[float], stage: int) -> None:
    assert one[stage]["wrong"] == []
    assert one[stage]["losses"] == pytest.approx(calm, rel=1e-4)


def test_two_ranks_go_on_from_one(one: object, folder: str, calm: list[float]) -> None:
    for rank in spawn_ranks(at_two_again, 2, folder):
        for stage in STAGES:
            assert rank[stage]["wrong"] == []
            assert rank[stage]["losses"] == pytest.approx(calm[2:], rel=1e-4)
            assert rank[stage]["updates"] == LAST


def test_a_rank_reads_its_own_part_only(two: list[Any]) -> None:
    for stage in STAGES:
        asked = [rank["spread"][stage][0] for rank in two]
        whole = two[0]["spread"][stage][1]
        assert sum(asked) == (2 * whole if stage == 0 else whole)
        assert max(asked) < 0.6 * whole or stage == 0


def test_the_state_of_another_network_is_refused(two: list[Any]) -> None:
    for said in two[0]["refused"]:
        assert "parameter head.bias: the network has [5] (5 values), the checkpoint [6] (6 values)" in said


def test_fp16_is_refused_where_there_is_none(two: list[Any]) -> None:
    assert "this device computes no fp16" in two[1]["fp16"]
