"""``vitpipe plan``: what a pretraining will take, before a node is rented. Computed from its recipe; nothing is read
but the card of the dataset, where it is there.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs.base.console import print_table, print_text
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Json, Overrides, Recipe, Workspace, changes, print_result
from jobs.base.recipe import load_chain, require
from pipeline.base.store.open import open_store
from pipeline.base.units import format_bytes, format_seconds

_SI = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
_SECONDS_OF_A_DAY = 86_400


def print_plan(found: dict[str, Any]) -> None:
    """As tables: the training, batches, memory, checkpoints."""
    for note in found["assumed"]:
        print_text(f"assumed: {note}")
    print_table(f"Plan of {found['run']}", ("training", ""), [*_facts(found), *_compute(found)])
    print_table("Batches of the world sizes at which they stay the same", _BATCH_COLUMNS, _batches(found["batch"]))
    blocks = "" if found["checkpoint_blocks"] else "not "
    title = f"Memory of a rank while it updates; * as in the recipe, where blocks are {blocks}checkpointed"
    print_table(title, _MEMORY_COLUMNS, [_memory(row) for row in found["memory"]])
    print_table("Checkpoints", ("part", "size"), _checkpoints(found["checkpoints"]))


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    model, training = found["model"], found["training"]
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


def _compute(found: dict[str, Any]) -> list[tuple[str, str]]:
    compute = found["compute"]
    rank = f"{compute['mfu']:.0%} of {compute['peak_tflops']:g} TFLOP/s on each of {found['batch']['workers']} ranks"
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


_BATCH_COLUMNS = ("workers", "micro-batch x accumulation x workers = batch", "")


def _batches(batch: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for row in batch["worlds"]:
        size = row["world_size"]
        told = row["problem"] or (
            f"{row['micro_batch_size']:,} x {row['accumulation']:,} x {size:,} = {batch['batch_size']:,}"
        )
        rows.append((f"{size:,}", told, "in the recipe" if row["in_recipe"] else ""))
    return rows


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


def _checkpoints(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("rank files", f"{format_bytes(found['fragments_bytes'])}, {format_bytes(found['bytes_of_a_rank'])} of a rank"),
        ("model.safetensors", format_bytes(found["weights_bytes"])),
    ]
    if found["ema_weights_bytes"]:
        rows.append(("ema.safetensors", format_bytes(found["ema_weights_bytes"])))
    return [
        *rows,
        ("one checkpoint", format_bytes(found["bytes"])),
        ("all", f"{found['written']:,} written, {found['kept']:,} kept: {format_bytes(found['kept_bytes'])}"),
    ]


def _si(value: float) -> str:
    scale, letter = next(((scale, letter) for scale, letter in _SI if value >= scale), (1.0, ""))
    return f"{value / scale:.3g} {letter}FLOP"


def _long(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds / _SECONDS_OF_A_DAY:.1f} days" if seconds > 2 * _SECONDS_OF_A_DAY else format_seconds(seconds)


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
    from pipeline.pretrain.estimate import Assumed
    from pipeline.pretrain.estimate import plan as make_plan

    chain = load_chain(recipe, overrides or [], changes(workspace, endpoint))
    section = require(chain.pretrain, "pretrain", recipe)
    found = make_plan(open_store(chain.workspace, chain.stores), section, Assumed(images, classes, mfu, peak_tflops))
    print_result(as_json, found, lambda: print_plan(found))


if __name__ == "__main__":
    main(plan)
