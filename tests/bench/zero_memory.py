"""Bytes of model and optimizer state on each of two ranks, by ZeRO stage, against the formula that `vitpipe plan` uses.

ViT-S/16 over real gloo ranks, one micro-batch an update. Counted are all tensors of a rank, each storage once: just as
the optimizer begins to update, and between two updates; the larger of the two ranks is told. The ratio is the smaller
by the larger of counted and formula, so that 0.90 is a tenth off either way. DeepSpeed's bucket of gradients is set to
5 MB of elements, below the size of the network.
"""

from __future__ import annotations

import gc
from functools import partial

import torch

from pipeline.base.units import format_bytes
from pipeline.base.world import World
from pipeline.models.config import config_by_name
from pipeline.models.cost import count_parameters
from pipeline.models.vit import ViT, has_weight_decay
from pipeline.train.deepspeed_config import model_state_bytes
from pipeline.train.recipe import EngineRecipe
from tests.bench.row import Row
from tests.bench.training import CLASSES, OPTIMIZER, cross_entropy
from tests.ranks.test_engine_memory import storages
from tests.support.ranks import spawn_ranks

_CONFIG = config_by_name("S/16", num_classes=CLASSES)
_RANKS, _BUCKET = 2, 5_000_000
_LIMIT_SECONDS = 200.0
_CASES = [(stage, precision) for precision in ("bf16", "fp32") for stage in (1, 2, 3)]


def measure() -> list[Row]:
    """Two rows for each stage and precision."""
    rows = []
    ranks = spawn_ranks(_counted, _RANKS, limit_seconds=_LIMIT_SECONDS)
    for number, (stage, precision) in enumerate(_CASES):
        parts = model_state_bytes(count_parameters(_CONFIG), _recipe(stage, precision), OPTIMIZER, _RANKS)
        whole = sum(parts.values())
        for moment, formula in (("updating", whole), ("between updates", whole - parts["gradients"])):
            counted = max(found[number][moment] for found in ranks)
            ratio = min(counted, formula) / max(counted, formula)
            what = f"state of a rank of {_RANKS}, ZeRO-{stage}, {precision}, {moment}: counted against formula"
            rows.append(Row(what, format_bytes(counted), format_bytes(formula), ratio, least=0.9))
    return rows


def _recipe(stage: int, precision: str) -> EngineRecipe:
    tree = {"zero_stage": stage, "precision": precision, "reduce_bucket_size": _BUCKET}
    return EngineRecipe.model_validate(tree)


def _counted() -> list[dict[str, int]]:
    """For each case the bytes of this rank at the two moments. Runs on each rank."""
    from pipeline.train.engine import DeepSpeedEngine

    found = []
    for stage, precision in _CASES:
        gc.collect()
        before = storages()
        engine = DeepSpeedEngine(
            ViT(_CONFIG), OPTIMIZER, _recipe(stage, precision), _RANKS, World.from_environment(), has_weight_decay
        )
        counts: dict[str, int] = {}

        def count(moment: str, counts: dict[str, int] = counts, before: dict[int, int] = before) -> None:
            gc.collect()
            size = sum(size for place, size in storages().items() if place not in before)
            counts[moment] = max(size, counts.get(moment, 0))  # the optimizer updates one group after the other

        images, labels = (
            torch.zeros(1, 3, _CONFIG.image_size, _CONFIG.image_size, dtype=engine.dtype),
            torch.tensor([1]),
        )
        loss = partial(cross_entropy, engine.module, images, labels)
        engine.update([loss], 1e-4)
        wrapper = engine._engine.optimizer
        base = getattr(wrapper, "optimizer", wrapper)
        hook = base.register_step_pre_hook(lambda *_, count=count: count("updating"))
        engine.update([loss], 1e-4)
        hook.remove()
        count("between updates")
        found.append(counts)
        engine._engine.destroy()
        del engine, wrapper, base, loss, count
    return found


if __name__ == "__main__":
    for row in measure():
        print(row)
