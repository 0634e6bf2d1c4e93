"""DeepSpeed on two real ranks against plain torch on one: losses, norms, weights and moving average, at every stage."""

from __future__ import annotations

import math
import os
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from pipeline.base.world import World
from pipeline.train.distributed import gather_full_state
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe
from pipeline.train.torch_engine import Engine
from tests.ranks.engines import OPTIMIZER, batch, differing, network, partitioned, remember, single, steps
from tests.support.ranks import spawn_ranks

STEPS, WORLD_SIZE, LIMIT = 50, 2, 280.0
SGD = OptimizerRecipe(name="sgd", learning_rate=0.02, weight_decay=0.1, clip=0.5, ema=0.9)
OPTIMIZERS = {
    "adamw": OPTIMIZER,
    "sgd": SGD,
    "layers": OPTIMIZER.model_copy(update={"layer_decay": 0.7}),
    "free": OPTIMIZER.model_copy(update={"clip": 0.0, "ema": 0.0}),
}
STAGES = (0, 1, 2, 3)
# (stage, optimizer, micro-batch size, updates); two samples at a time are two micro-batches on each of two ranks
LONG = [(stage, "adamw", 2 * (stage % 2), STEPS) for stage in STAGES]
LONG += [(stage, "sgd", 2 * (1 - stage % 2), 20) for stage in STAGES]
SHORT = [(stage, name, 0, 6) for stage, name in product(STAGES, ("layers", "free"))]
EXACT = LONG + SHORT
REST = [(stage, "adamw", 2 * (1 - stage % 2), STEPS) for stage in STAGES]
HALF = [(stage, micro, 6) for stage, micro in product(STAGES, (0, 2))]
pytestmark = pytest.mark.timeout(LIMIT + 30)


def rate(step: int) -> float:
    """Some schedule."""
    return 0.01 * (1 + step % 3) / 2


def recipe_of(stage: int, precision: str, micro: int) -> EngineRecipe:
    """Small parameters are partitioned too, so that stage 3 has work."""
    return EngineRecipe(zero_stage=stage, precision=precision, micro_batch_size=micro, persistence_threshold=30)


def story(engine: Engine, count: int, micro: int = 0) -> dict[str, Any]:
    """What happens in *count* updates: results, final state, and the early average by the formula from the weights."""
    average = {name: p.detach().reshape(-1) for name, p in network().named_parameters()}
    results, early = [], None
    for result in steps(engine, count, micro=micro, rate=rate):
        results.append(result)
        if len(results) <= 3:
            state = remember(engine).whole
            average = {name: 0.9 * value + (1 - 0.9) * state["weight"][name] for name, value in average.items()}
            early = state.get("ema")
    return {"results": results, "state": remember(engine), "average": average, "early": early}


def every_case(exact: list[Any], half: list[Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """On a rank: the story of each case; from rank 0 with all tensors."""
    world = World.from_environment()
    found = {}
    for stage, name, micro, count in exact:
        engine = partitioned(recipe_of(stage, "fp32", micro), OPTIMIZERS[name])
        found[stage, "fp32", name, micro] = story(engine, count, micro) | checks(engine)
    for stage, micro, count in half:
        engine = partitioned(recipe_of(stage, "bf16", micro))
        found[stage, "bf16", "adamw", micro] = story(engine, count, micro) | checks(engine) | poisoned(engine, micro)
    if world.rank:
        for told in found.values():
            del told["state"], told["average"], told["early"]
    return found


def checks(engine: Engine) -> dict[str, Any]:
    """``gather_full_state`` against what the test puts together by itself."""
    state = remember(engine)
    wrong = []
    for kind in state.whole:
        whole = gather_full_state(engine.fragments(), engine.shapes(), kind, dist.group.WORLD)
        assert (whole is None) == (dist.get_rank() > 0)
        if whole is not None:
            assert {name: tuple(tensor.shape) for name, tensor in whole.items()} == engine.shapes()
            flat = {name: tensor.reshape(-1) for name, tensor in whole.items()}
            wrong += differing({kind: flat}, {kind: state.whole[kind]})
    low = {name: parameter.dtype for name, parameter in engine.module.named_parameters()}
    return {"assembled wrong": wrong, "dtypes": set(low.values())}


def poisoned(engine: Engine, micro: int) -> dict[str, Any]:
    """What is told of a loss that is no number, on one rank."""
    factor = float("nan") if dist.get_rank() else 1.0
    images = batch(0)[0][: micro or 4].to(engine.dtype)
    losses = [lambda: factor * engine.module(images).float().mean()] * (2 if micro else 1)
    result = engine.update(losses, 0.01)
    return {"poisoned": result}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where torch puts what it compiles for the ranks."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def ranks(compiled: Path) -> list[dict[tuple[Any, ...], dict[str, Any]]]:
    """What each of two ranks found."""
    with mock.patch.dict(os.environ, {"TORCH_EXTENSIONS_DIR": str(compiled)}):
        return spawn_ranks(every_case, WORLD_SIZE, EXACT, HALF, limit_seconds=LIMIT)


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, int], dict[str, Any]]:
    """The same on one rank in plain torch."""
    torch.set_num_threads(1)
    counts = {name: count for _, name, _, count in EXACT}
    return {name: story(single(optimizer), counts[name]) for name, optimizer in OPTIMIZERS.items()}


def test_nothing_is_compiled(ranks: object, compiled: Path) -> None:
    assert list(compiled.iterdir()) == [], "a rank that is killed while it compiles blocks all later ones"


def check_curve(ranks: list[Any], alone: Any, stage: int, name: str, micro: int, count: int) -> None:
    """Every rank was told the losses and norms of one process."""
    expected = alone[name]["results"]
    assert len({row.loss for row in expected}) == count
    if OPTIMIZERS[name].clip:
        assert sum(row.grad_norm > OPTIMIZERS[name].clip for row in expected) > count / 2, "clipping is hardly active"
    for rank in ranks:
        found = rank[stage, "fp32", name, micro]["results"]
        assert [row.loss for row in found] == pytest.approx([row.loss for row in expected], rel=1e-5)
        # Of gradients that have become small, rounding is a larger part.
        assert [row.grad_norm for row in found] == pytest.approx([row.grad_norm for row in expected], rel=1e-3)


def check_state(ranks: list[Any], alone: Any, stage: int, name: str, micro: int, count: int) -> None:
    """The ranks together hold the weights and the average of one process."""
    found, expected = ranks[0][stage, "fp32", name, micro]["state"], alone[name]["state"]
    assert found.updates == expected.updates == count
    assert found.shapes() == expected.shapes()
    kinds = {"weight", "momentum_buffer"} if name == "sgd" else {"weight", "exp_avg", "exp_avg_sq"}
    assert found.whole.keys() == expected.whole.keys() == kinds | ({"ema"} if OPTIMIZERS[name].ema else set())
    for kind in {"weight", "ema"} & found.whole.keys():
        for parameter, tensor in expected.whole[kind].items():
            if not parameter.endswith("qkv.bias"):  # k's has no effect: its gradient is rounding
                torch.testing.assert_close(found.whole[kind][parameter], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", EXACT)
def test_the_curve_is_that_of_one_process(ranks: list[Any], alone: Any, case: tuple[Any, ...]) -> None:
    check_curve(ranks, alone, *case)


@pytest.mark.parametrize("case", EXACT)
def test_weights_and_average_are_those_of_one_process(ranks: list[Any], alone: Any, case: tuple[Any, ...]) -> None:
    check_state(ranks, alone, *case)


@pytest.mark.long
def test_so_it_is_with_the_other_micro_batches(alone: Any) -> None:
    ranks = spawn_ranks(every_case, WORLD_SIZE, REST, [], limit_seconds=LIMIT)
    for stage, name, micro, count in REST:
        check_curve(ranks, alone, stage, name, micro, count)
        check_state(ranks, alone, stage, name, micro, count)
        check_average(ranks, alone, (stage, "fp32", name, micro))
    check_ranks(ranks)


@pytest.mark.parametrize("case", [(stage, "fp32", "adamw", 2 * (stage % 2)) for stage in STAGES])
def test_the_average_is_that_of_the_formula(ranks: list[Any], alone: Any, case: tuple[Any, ...]) -> None:
    check_average(ranks, alone, case)


def check_average(ranks: list[Any], alone: Any, case: tuple[Any, ...]) -> None:
    """The moving average after three updates is what the formula makes of the weights."""
    for told in (ranks[0][case], alone["adamw"]):
        for name, average in told["average"].items():
            torch.testing.assert_close(told["early"][name], average, rtol=1e-6, atol=1e-7)
            assert not torch.equal(average, told["state"].whole["weight"][name])


@pytest.mark.parametrize(("stage", "micro", "count"), HALF)
def test_bf16_stays_near_the_curve_and_keeps_float32_weights(
    ranks: list[Any], alone: Any, stage: int, micro: int, count: int
) -> None:
    told = ranks[0][stage, "bf16", "adamw", micro]
    assert told["dtypes"] == {torch.bfloat16}
    expected = [row.loss for row in alone["adamw"]["results"][:count]]
    assert [row.loss for row in told["results"]] == pytest.approx(expected, rel=0.1)
    for name, weight in told["state"].whole["weight"].items():
        assert not torch.equal(weight, weight.bfloat16().float()), f"{name} was rounded"
    for name, average in told["average"].items():
        torch.testing.assert_close(told["early"][name], average, rtol=1e-6, atol=1e-7)


def test_a_loss_that_is_no_number_shows_on_every_rank(ranks: list[Any]) -> None:
    for stage, micro, _ in HALF:
        for rank in ranks:
            told = rank[stage, "bf16", "adamw", micro]["poisoned"]
            assert not math.isfinite(told.loss)
            assert not math.isfinite(told.grad_norm)


def test_every_rank_sees_the_same_numbers_and_holds_its_part(ranks: list[Any]) -> None:
    check_ranks(ranks)


def check_ranks(ranks: list[Any]) -> None:
    """Both ranks were told the same, and what is gathered of them is what their fragments say."""
    one, two = ranks
    assert one.keys() == two.keys()
    for case, told in one.items():
        assert [(row.loss.hex(), row.grad_norm.hex()) for row in told["results"]] == [
            (row.loss.hex(), row.grad_norm.hex()) for row in two[case]["results"]
        ]
    assert {case: told["assembled wrong"] for case, told in ranks[0].items() if told["assembled wrong"]} == {}
