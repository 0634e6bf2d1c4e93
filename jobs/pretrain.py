"""``vitpipe pretrain``: train the run of a recipe, or go on with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from jobs.base.console import make_progress, print_text
from jobs.base.entrypoint import code_version, main
from jobs.base.options import Address, Debug, Endpoint, Json, Overrides, Recipe, Workspace, changes, print_result
from jobs.base.ray_session import connected, import_torch_first, require_cpus
from jobs.base.recipe import ChainRecipe, load_chain, require
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store
from pipeline.pretrain.plan import check_recipe, read_training_data, world_sizes
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.run_card import extend, open_run_card


@dataclass(frozen=True)
class Lineage:
    """Options of a run beside its recipe: RUN@STEP that it is forked from, and the steps that it is to have."""

    parent: str | None = None
    extend_to: int = 0


_PLAIN = Lineage()


def run_pretrain(
    chain: ChainRecipe,
    recipe: PretrainRecipe,
    progress: Progress,
    address: str | None,
    debug: bool,
    lineage: Lineage = _PLAIN,
) -> list[int]:
    """Check, connect, train; the steps that have a checkpoint."""
    workspace = open_store(chain.workspace, chain.stores)
    data = read_training_data(workspace, recipe)
    check_recipe(recipe, data)
    workspace.check_writable()
    begun_with = check_weights(workspace, chain, recipe, lineage.parent)
    card = open_run_card(workspace, recipe, data, code_version(), lineage.parent, begun_with)
    if lineage.extend_to:
        extend(workspace, card, recipe, lineage.extend_to)
    import_torch_first()
    with connected(address, debug):
        return pretrain_connected(chain, recipe, progress)


def check_weights(workspace: Store, chain: ChainRecipe, recipe: PretrainRecipe, parent: str | None = None) -> str:
    """See ``check_initial``."""
    if not recipe.init:
        return ""
    # Imported here: it brings torch along, which recipes without init do without until they are found right.
    from pipeline.pretrain.initial_weights import check_initial

    return check_initial(workspace, chain.stores, recipe, parent)


def pretrain_connected(chain: ChainRecipe, recipe: PretrainRecipe, progress: Progress) -> list[int]:
    """Train on the cluster that ray is connected to."""
    # Imported here: it brings ray and DeepSpeed along, which a refused recipe does without.
    from pipeline.pretrain.stage import pretrain as pretrain_stage

    require_cpus("pretrain", world_sizes(recipe)[-1] * recipe.resources.cpus)
    workspace = open_store(chain.workspace, chain.stores)
    return pretrain_stage(workspace, chain.stores, recipe, code_version=code_version(), progress=progress)


def pretrain(
    recipe: Recipe = "tiny",
    overrides: Overrides = None,
    workspace: Workspace = None,
    run_name: Annotated[str | None, typer.Option("--run", help="name of the run; wins over the recipe's")] = None,
    dataset: Annotated[str | None, typer.Option(help="name of the dataset; wins over the recipe's")] = None,
    parent: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN@STEP", help="fork: a new run that goes on from another's checkpoint"),
    ] = None,
    extend: Annotated[
        int, typer.Option(min=0, metavar="STEPS", help="let the run have this many steps in all; 0: as many as it has")
    ] = 0,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Pretrain the run of a recipe, or go on with it from its newest checkpoint.

    A fork (--from) takes over weights, optimizer and stream position; learning rate, schedule, steps, augmentation may
    be others. --extend lengthens a run as if it had been that long from the start: with a constant or rsqrt schedule,
    or before a cool-down begins.
    """

    named = [f"pretrain.run={run_name}"] if run_name else []
    named += [f"pretrain.dataset={dataset}"] if dataset else []
    chain = load_chain(recipe, named + (overrides or []), changes(workspace, endpoint))
    section = require(chain.pretrain, "pretrain", recipe)
    steps = run_pretrain(chain, section, make_progress(), address, debug, Lineage(parent, extend))
    result = {"workspace": chain.workspace, "run": section.run, "checkpoints": steps}
    print_result(
        as_json, result, lambda: print_text(f"run {section.run}: checkpoints of steps {', '.join(map(str, steps))}")
    )


if __name__ == "__main__":
    main(pretrain)
