"""DeepSpeed on two real ranks: the curve of one process at every ZeRO stage, whole weights, and the files it writes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pipeline.base.world import World
from pipeline.checkpoints.layout import expected_files, files_of_rank
from pipeline.train.recipe import EngineRecipe
from tests.ranks.training import partitioned, single, train_some
from tests.support.ranks import spawn_ranks

STEPS, WORLD_SIZE = 10, 2
CASES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
EXACT = [stage for stage, precision in CASES if precision == "fp32"]
pytestmark = pytest.mark.timeout(150)


def train_every_case() -> dict[tuple[int, str, int], dict[str, Any]]:
    """On a rank: for each case and micro-batch size the results, the whole weights, and the names of its files."""
    world = World.from_environment()
    found = {}
    for stage, precision in CASES:
        for micro in (0, 2):
            engine = partitioned(world, EngineRecipe(zero_stage=stage, precision=precision, micro_batch_size=micro))
            results = train_some(engine, world, STEPS, micro_batch_size=micro)
            with tempfile.TemporaryDirectory() as scratch:
                engine.write_state(Path(scratch))
                files = sorted(path.name for path in Path(scratch).rglob("*.pt"))
            found[stage, precision, micro] = {"results": results, "weights": engine.full_weights(), "files": files}
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where torch puts what it compiles for the ranks."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def ranks(compiled: Path) -> list[dict[tuple[int, str, int], dict[str, Any]]]:
    """What each of two ranks found."""
    with mock.patch.dict(os.environ, {"TORCH_EXTENSIONS_DIR": str(compiled)}):
        return spawn_ranks(train_every_case, WORLD_SIZE)


def test_nothing_is_compiled(ranks: object, compiled: Path) -> None:
    assert list(compiled.iterdir()) == [], "a rank that is killed while it compiles blocks all later ones"


@pytest.mark.parametrize("micro", [0, 2])
@pytest.mark.parametrize("stage", EXACT)
def test_the_curve_is_that_of_one_process(ranks: list[Any], stage: int, micro: int) -> None:
    expected = train_some(single(), World(), STEPS)
    assert len({result.loss for result in expected}) == STEPS
    for rank in ranks:
        found = rank[stage, "fp32", micro]["results"]
        assert [row.loss for row in found] == pytest.approx([row.loss for row in expected], rel=1e-5)
        assert [row.grad_norm for row in found] == pytest.approx([row.grad_norm for row in expected], rel=1e-4)


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_every_rank_sees_the_same_numbers(ranks: list[Any], stage: int, precision: str) -> None:
    one, two = (rank[stage, precision, 0] for rank in ranks)
    assert [row.loss.hex() for row in one["results"]] == [row.loss.hex() for row in two["results"]]
    assert [row.grad_norm.hex() for row in one["results"]] == [row.grad_norm.hex() for row in two["results"]]


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_the_whole_weights_are_equal_on_all_ranks(ranks: list[Any], stage: int, precision: str) -> None:
    one, two = (rank[stage, precision, 0]["weights"] for rank in ranks)
    engine = single()
    train_some(engine, World(), STEPS)
    expected = {name: parameter.detach() for name, parameter in engine.module.named_parameters()}
    assert list(one) == list(two) == list(expected)
    for name, weight in expected.items():
        assert one[name].dtype == torch.float32
        assert torch.equal(one[name], two[name])
        assert one[name].shape == weight.shape
    if precision == "fp32":
        # k's bias does not change any attention: its gradient is rounding, which Adam blows up to its rate
        steady = [name for name in expected if not name.endswith("qkv.bias")]
        for name in steady:
            torch.testing.assert_close(one[name], expected[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_the_masters_are_float32_even_in_bf16(ranks: list[Any], stage: int, precision: str) -> None:
    weights = ranks[0][stage, precision, 0]["weights"]
    rounded = [torch.equal(weight, weight.bfloat16().float()) for weight in weights.values()]
    assert not all(rounded), "the weights were taken from the bf16 copy"


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_expected_files_are_those_that_are_written(ranks: list[Any], stage: int, precision: str) -> None:
    written = [rank[stage, precision, 0]["files"] for rank in ranks]
    assert {name for names in written for name in names} == expected_files(WORLD_SIZE, stage, precision)
    assert sum(map(len, written)) == len(expected_files(WORLD_SIZE, stage, precision)), "two ranks wrote one file"
    for rank in range(WORLD_SIZE):
        assert files_of_rank(rank, WORLD_SIZE, stage, precision) <= expected_files(WORLD_SIZE, stage, precision)
