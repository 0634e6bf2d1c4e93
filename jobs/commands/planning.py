"""``vitpipe plan``: what a pretraining will take."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.options import Debug, Endpoint, Json, Overrides, Recipe, Workspace, changes, finish
from jobs.recipe import load_chain, require


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
    from jobs.plan import Assumed
    from jobs.plan import plan as make_plan
    from jobs.plan_tables import print_plan

    chain = load_chain(recipe, overrides or [], changes(workspace, endpoint))
    section = require(chain.pretrain, "pretrain", recipe)
    found = make_plan(chain, section, Assumed(images, classes, mfu, peak_tflops))
    finish(as_json, found, lambda: print_plan(found))
