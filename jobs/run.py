"""``vitpipe run``: the whole chain of a recipe. Also ``python -m jobs.run recipe.yaml``, under ``ray job submit``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.base.console import make_progress
from jobs.base.entrypoint import main
from jobs.base.evaluation_request import recipe_request
from jobs.base.options import Address, Debug, Endpoint, Json, Overrides, Recipe, Workspace, recipe_changes
from jobs.base.ray_session import connected, import_torch_first
from jobs.base.recipe import ChainRecipe, load_chain, require
from jobs.evaluate import evaluate_connected
from jobs.pretrain import check_before_data, pretrain_connected
from jobs.report import run_report
from jobs.scores import print_summary
from jobs.shard import list_sources, shard_connected
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.records.run import run_prefix


def run(
    recipe: Recipe,
    overrides: Overrides = None,
    workspace: Workspace = None,
    out: Annotated[Path | None, typer.Option(help="folder to copy page, scores and summary to")] = None,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The whole chain of a recipe: shard, pretrain, evaluate, report."""
    chain = load_chain(recipe, overrides or [], recipe_changes(workspace, endpoint))
    print_summary(run_chain(chain, recipe, make_progress(), address, debug, out), as_json)


class _StageTimes:
    """Wall time of each stage in seconds, kept beside the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time what happens inside as *stage*."""
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 3)


def run_chain(
    chain: ChainRecipe, source: str, progress: Progress, address: str | None, debug: bool, out: Path | None
) -> dict[str, Any]:
    """shard, pretrain, evaluate, report; the report's summary. *source* is the recipe's name, for errors."""
    recipe = require(chain.pretrain, "pretrain", source)
    suite = require(chain.evaluate, "evaluate", source)
    workspace = open_store(chain.workspace, chain.stores)
    times = _StageTimes()
    with times.measure("list"):
        listed = list_sources(chain)
    check_before_data(chain, recipe)
    import_torch_first()
    with ExitStack() as stack:
        with times.measure("ray"):
            stack.enter_context(connected(address, debug))
        with times.measure("shard"):
            shard_connected(chain, listed, progress)
        with times.measure("pretrain"):
            pretrain_connected(chain, recipe, progress)
        with times.measure("evaluate"):
            evaluate_connected(chain, recipe_request(recipe.run, suite), progress)
    workspace.put(f"{run_prefix(recipe.run)}/seconds.json", (json.dumps(times.seconds, indent=2) + "\n").encode())
    return run_report(chain, recipe.run, progress, out)


if __name__ == "__main__":
    main(run)
