"""What DeepSpeed is told, and what is refused before it is."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.base.errors import RecipeError
from pipeline.train.deepspeed_config import check_engine, deepspeed_config
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe


def config_of(clip: float = 0.7, batch: int = 64, world: int = 4, size: int = 10**6, **settings: Any) -> dict[str, Any]:
    """For a recipe with *settings*."""
    return deepspeed_config(OptimizerRecipe(clip=clip), EngineRecipe(**settings), batch, world, size)


def test_the_batch_is_told_in_all_three_ways() -> None:
    config = config_of(micro_batch_size=8)
    assert config["train_batch_size"] == 64
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["gradient_accumulation_steps"] == 2


def test_clipping_is_always_told() -> None:
    assert config_of(clip=0.0)["gradient_clipping"] == 0.0
    assert config_of()["gradient_clipping"] == 0.7


@pytest.mark.parametrize(
    ("settings", "in_float32"),
    [
        ({"precision": "bf16", "zero_stage": 2, "micro_batch_size": 8}, True),
        ({"precision": "bf16", "zero_stage": 2, "micro_batch_size": 16}, False),
        ({"precision": "bf16", "zero_stage": 0, "micro_batch_size": 8}, False),
        ({"precision": "fp32", "zero_stage": 2, "micro_batch_size": 8}, False),
    ],
)
def test_micro_batches_are_summed_in_float32_where_they_can_be(settings: dict[str, Any], in_float32: bool) -> None:
    assert config_of(**settings).get("data_types") == ({"grad_accum_dtype": "fp32"} if in_float32 else None)


def test_buckets_are_no_larger_than_the_network() -> None:
    assert config_of(size=1234)["zero_optimization"]["reduce_bucket_size"] == 1234
    assert config_of(size=10**9)["zero_optimization"]["reduce_bucket_size"] == 50_000_000


def test_settings_that_were_not_tried_are_handed_on() -> None:
    told = config_of(
        zero_stage=3,
        precision="fp16",
        loss_scale=64.0,
        offload_optimizer="cpu",
        offload_parameters="nvme",
        nvme_path="/scratch",
        pin_memory=True,
        overlap_comm=True,
        persistence_threshold=7,
    )
    zero = told["zero_optimization"]
    assert told["fp16"] == {"enabled": True, "loss_scale": 64.0}
    assert told["bf16"] == {"enabled": False}
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert zero["offload_param"] == {"device": "nvme", "pin_memory": True, "nvme_path": "/scratch"}
    assert zero["overlap_comm"] is True
    assert zero["stage3_param_persistence_threshold"] == 7
    untried = {name for name, field in EngineRecipe.model_fields.items() if "not tried" in (field.description or "")}
    assert untried >= {"loss_scale", "offload_optimizer", "offload_parameters", "overlap_comm", "nvme_path"}


def test_all_that_cannot_be_is_refused_at_once() -> None:
    recipe = EngineRecipe(zero_stage=0, precision="fp16", offload_optimizer="cpu", offload_parameters="nvme")
    with pytest.raises(RecipeError) as caught:
        check_engine(recipe)
    assert [problem.partition(" needs")[0] for problem in caught.value.problems] == [
        "engine: fp16",
        "engine.offload_optimizer",
        "engine.offload_parameters",
        "engine.offload_parameters: nvme",
    ]
    with pytest.raises(RecipeError):
        deepspeed_config(OptimizerRecipe(), recipe, 8, 1, 100)
    for stage in (0, 1, 2, 3):
        for precision in ("bf16", "fp32"):
            check_engine(EngineRecipe(zero_stage=stage, precision=precision))
