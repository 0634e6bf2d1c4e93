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
from jobs.base.options import Address, Debug, Endpoint, Json, Overrides, Recipe, Workspace, changes
from jobs.base.ray_session import connected, import_torch_first
from jobs.base.recipe import ChainRecipe, load_chain, require
from jobs.evaluate import evaluate_connected
from jobs.pretrain import check_weights, pretrain_connected
from jobs.report import run_report as report
from jobs.report import show_summary
from jobs.shard import list_sources, shard_connected
from pipeline.base.errors import MismatchError
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.records.run import run_prefix


class StageTimes:
    """Wall time of each stage, kept beside the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time what happens inside as *stage*."""
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 3)


def run_run(
    chain: ChainRecipe, source: str, progress: Progress, address: str | None, debug: bool, out: Path | None
) -> dict[str, Any]:
    """shard, pretrain, evaluate, report; the report's summary. *source* is the recipe's name, for errors."""
    recipe = require(chain.pretrain, "pretrain", source)
    suite = require(chain.evaluate, "evaluate", source)
    workspace = open_store(chain.workspace, chain.stores)
    watch = StageTimes()
    with watch.measure("list"):
        corpora = list_sources(chain)
    _check_before_start(chain)
    import_torch_first()
    with ExitStack() as stack:
        with watch.measure("ray"):
            stack.enter_context(connected(address, debug))
        with watch.measure("shard"):
            shard_connected(chain, corpora, progress)
        with watch.measure("pretrain"):
            pretrain_connected(chain, recipe, progress)
        with watch.measure("evaluate"):
            evaluate_connected(chain, recipe.run, suite, progress)
    workspace.put(f"{run_prefix(recipe.run)}/seconds.json", (json.dumps(watch.seconds, indent=2) + "\n").encode())
    return report(chain, recipe.run, progress, out)


def _check_before_start(chain: ChainRecipe) -> None:
    """What can be known before there is a dataset: weights of ``init``, and whether a run of that name is this one."""
    workspace = open_store(chain.workspace, chain.stores)
    recipe = chain.pretrain
    if recipe is not None:
        check_weights(workspace, chain, recipe)
    if recipe is None or workspace.head(f"{run_prefix(recipe.run)}/run.json") is None:
        return
    # Imported here: it brings torch along, which a first run's checks do without.
    from jobs.base.entrypoint import code_version
    from pipeline.pretrain.plan import read_training_data
    from pipeline.pretrain.run_card import open_run_card

    try:
        data = read_training_data(workspace, recipe)
    except FileNotFoundError as error:
        raise MismatchError(f"run {recipe.run!r} exists, but its dataset is gone") from error
    open_run_card(workspace, recipe, data, code_version())


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

    chain = load_chain(recipe, overrides or [], changes(workspace, endpoint))
    show_summary(run_run(chain, recipe, make_progress(), address, debug, out), as_json)


if __name__ == "__main__":
    main(run)
