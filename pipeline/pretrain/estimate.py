"""What a pretraining will take, before a node is rented: parameters, FLOPs, time, memory, checkpoints.

Computed from its recipe for ``vitpipe plan``; nothing is read but the card of the dataset, where it is there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipeline.base.errors import InputError, RecipeError, StoreAccessError
from pipeline.base.store.protocol import Store
from pipeline.base.world import allowed_world_sizes
from pipeline.checkpoints.retention import Retention
from pipeline.models.config import ViTConfig
from pipeline.models.cost import activation_bytes_per_image, flops_per_image
from pipeline.models.registry import build_network
from pipeline.pretrain.objectives.objective import build_objective
from pipeline.pretrain.objectives.recipe import pretraining_flops_per_image
from pipeline.pretrain.plan import DatasetMixture, TrainingData, TrainingPlan, make_plan, read_training_data
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.train.deepspeed_config import check_engine, model_state_bytes
from pipeline.train.recipe import EngineRecipe, accumulation

_STAGES = (0, 1, 2, 3)  # of ZeRO
_ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # of activations
_STATE_BYTES = 4  # checkpoints hold float32
_CLASSES = 1_000  # where the number is not known: ImageNet-1k's
_DEFAULT_TFLOPS = 312.0  # NVIDIA A100, bf16 without sparsity (its data sheet)


@dataclass(frozen=True)
class Assumed:
    """Options of the command line; 0: the option is not set."""

    images: int = 0
    classes: int = 0
    mfu: float = 0.4  # of well-tuned transformers on one node or some
    peak_tflops: float = 0.0


def plan(workspace: Store, recipe: PretrainRecipe, assumed: Assumed) -> dict[str, Any]:
    """Everything about *recipe* as plain values. Raises RecipeError where training would refuse it."""
    data, images, notes = _data(workspace, recipe, assumed)
    checked = make_plan(recipe, data)
    config, ranks = checked.architecture, checked.world_sizes[0]
    num_parameters = _parameters(config, recipe)
    return {
        "run": recipe.run,
        "assumed": notes,
        "model": {
            "parameters": num_parameters,
            "tokens_per_image": config.num_tokens,
            "image_size": config.image_size,
            "classes": config.num_classes,
        },
        "training": _training(recipe, images, config),
        "batch": {"batch_size": recipe.stream.batch_size, "workers": ranks, "worlds": _worlds(checked)},
        "compute": _compute(recipe, config, ranks, assumed),
        "checkpoint_blocks": recipe.checkpoint_blocks,
        "memory": _memory(checked, num_parameters),
        "checkpoints": _checkpoints(recipe, num_parameters, ranks),
    }


def _data(workspace: Store, recipe: PretrainRecipe, assumed: Assumed) -> tuple[TrainingData, int, list[str]]:
    """The dataset, or what is assumed for it; its images, 0 when not known; and what was assumed about it."""
    card: TrainingData | None = None
    notes: list[str] = []
    try:
        card = read_training_data(workspace, recipe)
    except (InputError, StoreAccessError) as error:
        notes.append(f"the dataset was not read: {error.message}")
    images = assumed.images or (card.num_samples if card else 0)
    classes = assumed.classes or (len(card.class_names) if card else recipe.model.num_classes)
    labels = recipe.objective.labels
    if not classes and labels != "none":
        classes = _CLASSES
        notes.append(f"{classes:,} classes: not known; add --classes K")
    elif not card or assumed.classes:
        notes.append(f"{classes:,} classes" if labels != "none" else "no classes: the objective needs no labels")
    if not card or assumed.images:
        notes.append(f"{images:,} images" if images else "images: not known, so no epochs; add --images N")
    names = tuple(map(str, range(classes)))
    if card and classes == len(card.class_names):
        names = card.class_names
    digest = card.digest if card else ""
    # What training checks needs some number of images; one that is not known refuses nothing.
    return (
        DatasetMixture(" + ".join(recipe.dataset_weights), digest, names, images or recipe.stream.batch_size),
        images,
        notes,
    )


def _parameters(config: ViTConfig, recipe: PretrainRecipe) -> int:
    """Of all that is trained: of the objective too."""
    with torch.device("meta"):
        network = build_objective(recipe.objective).network(build_network(config))
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _training(recipe: PretrainRecipe, images: int, config: ViTConfig) -> dict[str, Any]:
    samples = recipe.steps * recipe.stream.batch_size
    return {
        "steps": recipe.steps,
        "samples": samples,
        "images": images or None,
        "epochs": samples / images if images else None,
        "warmup_share": recipe.schedule.span("warmup", recipe.stream.batch_size) / samples,
        "tokens": samples * config.num_tokens,
    }


def _worlds(checked: TrainingPlan) -> list[dict[str, Any]]:
    """How each world size that gives the same global batches would divide them."""
    rows = []
    recipe = checked.recipe
    for size in allowed_world_sizes(recipe.stream.partitions):
        row: dict[str, Any] = {"world_size": size, "in_recipe": size in checked.world_sizes}
        try:
            micro, steps = accumulation(recipe.stream.batch_size, size, recipe.engine.micro_batch_size)
            row |= {"micro_batch_size": micro, "accumulation": steps, "problem": None}
        except RecipeError as error:
            row |= {"micro_batch_size": None, "accumulation": None, "problem": error.problems[0]}
        rows.append(row)
    return rows


def _compute(recipe: PretrainRecipe, config: ViTConfig, ranks: int, assumed: Assumed) -> dict[str, Any]:
    """Model FLOPs: what is computed again, as with activation checkpointing, is not among them."""
    extra = recipe.objective.extra_flops_per_image(config)
    forward = flops_per_image(config, all_rows=recipe.objective.reads_all_tokens)
    training = pretraining_flops_per_image(recipe.objective, config)
    step = training * recipe.stream.batch_size
    total = step * recipe.steps
    tflops = assumed.peak_tflops or recipe.resources.peak_flops / 1e12 or _DEFAULT_TFLOPS
    rate = ranks * tflops * 1e12 * assumed.mfu
    return {
        "flops_per_image_forward": forward.total + extra,
        "flops_by_part_forward": asdict(forward) | ({"objective": extra} if extra else {}),
        "flops_per_image_training": training,
        "flops_per_step": step,
        "flops_total": total,
        "mfu": assumed.mfu,
        "peak_tflops": tflops,
        "step_seconds": step / rate,
        "images_per_second": recipe.stream.batch_size * rate / step,
        "total_seconds": total / rate,
        "rank_hours": total / rate * ranks / 3600,
    }


def _memory(checked: TrainingPlan, num_parameters: int) -> list[dict[str, Any]]:
    """Of a rank while it updates, by world size (fewest and most of the recipe) and ZeRO stage."""
    rows = []
    recipe, config = checked.recipe, checked.architecture
    element = _ELEMENT_BYTES[recipe.engine.precision]
    for ranks in sorted({checked.world_sizes[0], checked.world_sizes[-1]}):
        micro, steps = accumulation(recipe.stream.batch_size, ranks, recipe.engine.micro_batch_size)
        kept, checkpointed = (
            micro * activation_bytes_per_image(config, element, again, all_rows=recipe.objective.reads_all_tokens)
            for again in (False, True)
        )
        for stage in _STAGES:
            engine = recipe.engine.model_copy(update={"zero_stage": stage})
            if not _possible(engine):
                continue
            state = model_state_bytes(num_parameters, engine, recipe.optimizer, ranks, accumulation_steps=steps)
            rows.append(
                {
                    "world_size": ranks,
                    "zero_stage": stage,
                    "in_recipe": stage == recipe.engine.zero_stage,
                    **{f"{part}_bytes": num_bytes for part, num_bytes in state.items()},
                    "state_bytes": sum(state.values()),
                    "micro_batch_size": micro,
                    "activation_bytes": kept,
                    "activation_bytes_checkpointed": checkpointed,
                    "bytes": sum(state.values()) + (checkpointed if recipe.checkpoint_blocks else kept),
                }
            )
    return rows


def _possible(engine: EngineRecipe) -> bool:
    try:
        check_engine(engine)
    except RecipeError:
        return False
    return True


def _checkpoints(recipe: PretrainRecipe, num_parameters: int, ranks: int) -> dict[str, Any]:
    """Their expected size, apart from some kilobytes of names and cards."""
    moments = {"adamw": 2, "sgd": 1 if recipe.optimizer.momentum else 0}[recipe.optimizer.name]
    has_ema = recipe.optimizer.ema > 0
    tensor_bytes = _STATE_BYTES * num_parameters
    sizes = {
        "fragments_bytes": tensor_bytes * (1 + moments + has_ema),
        "weights_bytes": tensor_bytes,
        "ema_weights_bytes": tensor_bytes * has_ema,
    }
    steps = [*range(0, recipe.steps, recipe.checkpoint_every), recipe.steps]  # 0: of the untrained network
    kept = len(steps) - len(Retention(recipe.keep_last, recipe.keep_every).superfluous(steps))
    size = sum(sizes.values())
    return sizes | {
        "bytes": size,
        "bytes_of_a_rank": sizes["fragments_bytes"] // ranks,
        "written": len(steps),
        "kept": kept,
        "kept_bytes": kept * size,
    }
