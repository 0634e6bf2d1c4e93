"""``vitpipe plan``: what a pretraining will take, before a node is rented. Computed from its recipe; nothing is read
but the card of the dataset, where it is there.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs.base.console import print_result, print_table, print_text
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Json, Overrides, Recipe, Workspace, recipe_changes
from jobs.base.recipe import load_chain, require
from pipeline.base.store.open import open_store
from pipeline.base.units import format_bytes, format_seconds

_BATCH_COLUMNS = ("workers", "micro-batch x accumulation x workers = batch", "")
_MEMORY_COLUMNS = (
    "workers",
    "ZeRO",
    "weights",
    "optimizer",
    "EMA",
    "buffers",
    "gradients",
    "state",
    "activations of",
    "checkpointed",
    "state and activations",
)
_SI = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))  # scale, prefix of the unit
_SECONDS_OF_A_DAY = 86_400


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    workspace: Workspace = None,
    images: Annotated[int, typer.Option(min=0, help="of the dataset; 0: as its card says")] = 0,
    classes: Annotated[int, typer.Option(min=0, help="of the dataset; 0: as its card says, or the recipe")] = 0,
    mfu: Annotated[float, typer.Option(min=0.001, max=1, help="share of the peak that training reaches")] = 0.4,
    peak_tflops: Annotated[
        float, typer.Option(min=0, help="of a rank; 0: resources.peak_flops of the recipe, else 312 (A100, bf16)")
    ] = 0.0,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What the pretraining of a recipe will take: memory of a rank by ZeRO stage, FLOPs, time, batches, checkpoints.

    Nothing is started or written. The dataset need not be there: give --images and --classes instead.
    """
    # Imported here: it brings torch along, which --help does without.
    from pipeline.pretrain import estimate

    chain = load_chain(recipe, overrides or [], recipe_changes(workspace, endpoint))
    section = require(chain.pretrain, "pretrain", recipe)
    assumed = estimate.Assumed(images, classes, mfu, peak_tflops)
    values = estimate.plan(open_store(chain.workspace, chain.stores), section, assumed)
    print_result(as_json, values, lambda: _print_plan(values))


def _print_plan(values: dict[str, Any]) -> None:
    """The training, batches, memory, checkpoints, as tables."""
    for note in values["assumed"]:
        print_text(f"assumed: {note}")
    print_table(f"Plan of {values['run']}", ("training", ""), [*_facts(values), *_compute(values)])
    print_table("Batches of the world sizes at which they stay the same", _BATCH_COLUMNS, _batches(values["batch"]))
    blocks = "" if values["checkpoint_blocks"] else "not "
    title = f"Memory of a rank while it updates; * as in the recipe, where blocks are {blocks}checkpointed"
    print_table(title, _MEMORY_COLUMNS, [_memory(row) for row in values["memory"]])
    print_table("Checkpoints", ("part", "size"), _checkpoints(values["checkpoints"]))


def _facts(values: dict[str, Any]) -> list[tuple[str, str]]:
    model, training = values["model"], values["training"]
    epochs = "not known" if training["epochs"] is None else f"{training['epochs']:.4g} of {training['images']:,} images"
    return [
        ("parameters", f"{model['parameters']:,}"),
        ("tokens of an image", f"{model['tokens_per_image']:,} at {model['image_size']} px"),
        ("classes", f"{model['classes']:,}"),
        ("steps", f"{training['steps']:,}, {training['warmup_share']:.1%} of them warm-up"),
        ("samples", f"{training['samples']:,}"),
        ("epochs", epochs),
        ("tokens", f"{training['tokens']:.3g}"),
    ]


def _compute(values: dict[str, Any]) -> list[tuple[str, str]]:
    compute = values["compute"]
    rank = f"{compute['mfu']:.0%} of {compute['peak_tflops']:g} TFLOP/s on each of {values['batch']['workers']} ranks"
    forward, training = compute["flops_per_image_forward"], compute["flops_per_image_training"]
    return [
        ("FLOPs of an image", f"{_si(forward)} forward, {_si(training)} with backward"),
        ("FLOPs forward by part", ", ".join(f"{n} {c / forward:.1%}" for n, c in _parts(compute).items())),
        ("FLOPs of a step", _si(compute["flops_per_step"])),
        ("FLOPs in all", _si(compute["flops_total"])),
        ("time", f"{_long(compute['total_seconds'])} at {rank}"),
        ("", f"{_long(compute['step_seconds'])} a step, {compute['images_per_second']:,.0f} images/s"),
        ("", f"{compute['rank_hours']:,.1f} hours of a rank in all"),
    ]


def _parts(compute: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in compute["flops_by_part_forward"].items() if count}


def _batches(batch: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for row in batch["worlds"]:
        size = row["world_size"]
        size_text = row["problem"] or (
            f"{row['micro_batch_size']:,} x {row['accumulation']:,} x {size:,} = {batch['batch_size']:,}"
        )
        rows.append((f"{size:,}", size_text, "in the recipe" if row["in_recipe"] else ""))
    return rows


def _memory(row: dict[str, Any]) -> list[str]:
    parts = [row[f"{part}_bytes"] for part in ("weights", "optimizer", "ema", "buffers", "gradients", "state")]
    return [
        f"{row['world_size']:,}",
        f"{row['zero_stage']}{'*' if row['in_recipe'] else ''}",
        *map(format_bytes, parts),
        f"{row['micro_batch_size']:,} images: {format_bytes(row['activation_bytes'])}",
        format_bytes(row["activation_bytes_checkpointed"]),
        format_bytes(row["bytes"]),
    ]


def _checkpoints(values: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (
            "rank files",
            f"{format_bytes(values['fragments_bytes'])}, {format_bytes(values['bytes_of_a_rank'])} of a rank",
        ),
        ("model.safetensors", format_bytes(values["weights_bytes"])),
    ]
    if values["ema_weights_bytes"]:
        rows.append(("ema.safetensors", format_bytes(values["ema_weights_bytes"])))
    return [
        *rows,
        ("one checkpoint", format_bytes(values["bytes"])),
        ("all", f"{values['written']:,} written, {values['kept']:,} kept: {format_bytes(values['kept_bytes'])}"),
    ]


def _si(value: float) -> str:
    scale, letter = next(((scale, letter) for scale, letter in _SI if value >= scale), (1.0, ""))
    return f"{value / scale:.3g} {letter}FLOP"


def _long(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds / _SECONDS_OF_A_DAY:.1f} days" if seconds > 2 * _SECONDS_OF_A_DAY else format_seconds(seconds)


if __name__ == "__main__":
    main(plan)
