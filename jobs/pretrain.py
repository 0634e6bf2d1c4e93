"""``vitpipe pretrain``: train the run of a recipe, or go on with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from jobs.base.console import make_progress, print_result, print_text
from jobs.base.entrypoint import code_version, main
from jobs.base.options import Address, Debug, Endpoint, Json, Overrides, Recipe, Workspace, recipe_changes
from jobs.base.ray_session import connected, import_torch_first, require_cpus
from jobs.base.recipe import ChainRecipe, load_chain, require
from pipeline.base.errors import MismatchError
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store
from pipeline.pretrain.plan import make_plan, read_training_data, world_sizes
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.run_card import extend, open_run_card
from pipeline.records.run import run_prefix


@dataclass(frozen=True)
class Lineage:
    """Options of a run beside its recipe: RUN@STEP that it is forked from, and the steps that it is to have."""

    parent: str | None = None
    extend_to: int = 0


_NO_LINEAGE = Lineage()


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
    chain = load_chain(recipe, named + (overrides or []), recipe_changes(workspace, endpoint))
    section = require(chain.pretrain, "pretrain", recipe)
    steps = run_pretrain(chain, section, make_progress(), address, debug, Lineage(parent, extend))
    result = {"workspace": chain.workspace, "run": section.run, "checkpoints": steps}
    text = f"run {section.run}: checkpoints of steps {', '.join(map(str, steps))}"
    print_result(as_json, result, lambda: print_text(text))


def run_pretrain(
    chain: ChainRecipe,
    recipe: PretrainRecipe,
    progress: Progress,
    address: str | None,
    debug: bool,
    lineage: Lineage = _NO_LINEAGE,
) -> list[int]:
    """Check, connect, train; the steps that have a checkpoint."""
    workspace = open_store(chain.workspace, chain.stores)
    plan = make_plan(recipe, read_training_data(workspace, recipe))
    workspace.check_writable()
    init_sha256 = _check_weights(workspace, chain, recipe, lineage.parent)
    card = open_run_card(workspace, recipe, plan.data, code_version(), lineage.parent, init_sha256)
    if lineage.extend_to:
        extend(workspace, card, recipe, lineage.extend_to)
    import_torch_first()
    with connected(address, debug):
        # Imported here: it brings ray and DeepSpeed along, which a refused recipe does without.
        from pipeline.pretrain import stage

        require_cpus("pretrain", plan.world_sizes[-1] * recipe.resources.cpus)
        return stage.pretrain(workspace, chain.stores, plan, card, progress=progress)


def _check_weights(workspace: Store, chain: ChainRecipe, recipe: PretrainRecipe, parent: str | None = None) -> str:
    """The sha256 of the weights that ``init`` names, "" without. Raises as ``check_initial``."""
    if not recipe.init:
        return ""
    # Imported here: it brings torch along, which a recipe that is refused, or has no init, does without.
    from pipeline.pretrain.initial_weights import check_initial

    return check_initial(workspace, chain.stores, recipe, parent)


def check_before_data(chain: ChainRecipe, recipe: PretrainRecipe) -> None:
    """What is known before there is a dataset: weights of ``init``, and whether a run of that name is this one.

    Raises MismatchError for a run of other content.
    """
    workspace = open_store(chain.workspace, chain.stores)
    _check_weights(workspace, chain, recipe)
    if workspace.head(f"{run_prefix(recipe.run)}/run.json") is None:
        return
    try:
        data = read_training_data(workspace, recipe)
    except FileNotFoundError as error:
        raise MismatchError(f"run {recipe.run!r} exists, but its dataset is gone") from error
    open_run_card(workspace, recipe, data, code_version())


def pretrain_connected(chain: ChainRecipe, recipe: PretrainRecipe, progress: Progress) -> list[int]:
    """Check and train on the cluster that ray is connected to: for ``vitpipe run``, which makes the dataset first."""
    # Imported here: it brings ray and DeepSpeed along, which a refused recipe does without.
    from pipeline.pretrain import stage

    require_cpus("pretrain", world_sizes(recipe)[-1] * recipe.resources.cpus)
    workspace = open_store(chain.workspace, chain.stores)
    plan, card = stage.check(workspace, chain.stores, recipe, code_version=code_version())
    return stage.pretrain(workspace, chain.stores, plan, card, progress=progress)


if __name__ == "__main__":
    main(pretrain)
