"""The formula of the memory of model and optimizer against the tensors that two real ranks hold."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.base.world import World
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT, has_weight_decay
from pipeline.train.deepspeed_config import model_state_bytes
from pipeline.train.engine import DeepSpeedEngine
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe
from tests.support.ranks import spawn_ranks

WORLD_SIZE, LIMIT = 2, 280.0
CONFIG = ViTConfig(image_size=8, patch_size=8, width=128, depth=3, mlp_width=512, heads=2, num_classes=4)
NUM_PARAMETERS = sum(parameter.numel() for parameter in ViT(CONFIG).parameters())
ADAMW, SGD = OptimizerRecipe(), OptimizerRecipe(name="sgd", ema=0.9)
CASES = [(stage, precision, ADAMW, 1) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")]
CASES += [(stage, "bf16", ADAMW, 2) for stage in (1, 2, 3)] + [(stage, "bf16", SGD, 1) for stage in (0, 2, 3)]
pytestmark = pytest.mark.timeout(LIMIT + 30)


def storages() -> dict[int, int]:
    """Bytes of each storage that a tensor of this process uses, by its address."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor):  # isinstance would wake lazy modules up
                for tensor in (thing, thing.grad if thing.is_leaf else None):
                    if tensor is not None and tensor.device.type == "cpu":
                        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return found


def recipe_of(stage: int, precision: str, steps: int) -> EngineRecipe:
    """A bucket that is much smaller than the network."""
    return EngineRecipe(zero_stage=stage, precision=precision, micro_batch_size=2 // steps, reduce_bucket_size=100_000)


def counted() -> list[dict[str, int]]:
    """On a rank: for each case the bytes while the optimizer updates, and after the update."""
    found = []
    gc.freeze()  # what is there already, all modules, need not be looked through again
    for stage, precision, optimizer, steps in CASES:
        before = storages()
        engine = DeepSpeedEngine(
            ViT(CONFIG), optimizer, recipe_of(stage, precision, steps), 4, World.from_environment(), has_weight_decay
        )
        told: dict[str, int] = {}

        def note(name: str, told: dict[str, int] = told, before: dict[int, int] = before) -> None:
            gc.collect()
            size = sum(count for place, count in storages().items() if place not in before)
            told[name] = max(size, told.get(name, 0))

        def loss(engine: DeepSpeedEngine = engine) -> torch.Tensor:
            output = engine.module(torch.ones(1, 3, 8, 8, dtype=engine.dtype))
            return nn.functional.cross_entropy(output.float(), torch.tensor([1]))

        wrapper = engine._engine.optimizer
        base = getattr(wrapper, "optimizer", wrapper)
        engine.update([loss] * steps, 0.001)
        hook = base.register_step_pre_hook(lambda *_, note=note: note("updating"))
        engine.update([loss] * steps, 0.001)
        hook.remove()
        note("resting")
        found.append(told)
        engine._engine.destroy()
        del engine, wrapper, base, note, loss
        gc.collect()
    return found


@pytest.fixture(scope="module")
def ranks() -> list[list[dict[str, int]]]:
    """What each of two ranks counted."""
    return spawn_ranks(counted, WORLD_SIZE, limit_seconds=LIMIT)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=[f"{s}-{p}-{o.name}-{n}" for s, p, o, n in CASES])
def test_the_formula_is_within_a_tenth(ranks: list[Any], case: Any) -> None:
    stage, precision, optimizer, steps = case
    recipe = recipe_of(stage, precision, steps)
    parts = model_state_bytes(NUM_PARAMETERS, recipe, optimizer, WORLD_SIZE, accumulation_steps=steps)
    updating, resting = sum(parts.values()), sum(parts.values()) - parts["gradients"]
    for rank in ranks:
        told = rank[CASES.index(case)]
        assert told["resting"] == pytest.approx(resting, rel=0.1)
        assert told["updating"] == pytest.approx(updating, rel=0.1)


def test_more_ranks_hold_less_from_each_stage_on() -> None:
    def total(stage: int, world: int) -> int:
        parts = model_state_bytes(10**9, EngineRecipe(zero_stage=stage), ADAMW, world)
        return sum(parts.values())

    assert [total(stage, 64) for stage in (0, 1, 2, 3)] == sorted((total(s, 64) for s in range(4)), reverse=True)
    assert total(0, 1) == total(0, 64) == 20 * 10**9
    assert total(2, 64) == 2 * 10**9 + 18 * 10**9 // 64
