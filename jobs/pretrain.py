"""``vitpipe pretrain``: train the run of a recipe, or go on with it."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.cluster import connected, import_torch_first, require_cpus
from jobs.code_version import code_version
from jobs.recipe import ChainRecipe
from pipeline.base.progress import Progress
from pipeline.base.store import Store, open_store
from pipeline.pretrain.data import read_training_data
from pipeline.pretrain.lineage import extend
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.run import check_recipe, open_run, world_sizes


@dataclass(frozen=True)
class Lineage:
    """Options of a run beside its recipe: RUN@STEP that it is forked from, and the steps that it is to have."""

    parent: str | None = None
    extend_to: int = 0


_PLAIN = Lineage()


def pretrain(
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
    card = open_run(workspace, recipe, data, code_version(), lineage.parent, begun_with)
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
    from pipeline.pretrain.initial import check_initial  # noqa: PLC0415

    return check_initial(workspace, chain.stores, recipe, parent)


def pretrain_connected(chain: ChainRecipe, recipe: PretrainRecipe, progress: Progress) -> list[int]:
    """Train on the cluster that ray is connected to."""
    # Imported here: it brings ray and DeepSpeed along, which a refused recipe does without.
    from pipeline.pretrain.stage import pretrain as pretrain_stage  # noqa: PLC0415

    require_cpus("pretrain", world_sizes(recipe)[-1] * recipe.resources.cpus)
    workspace = open_store(chain.workspace, chain.stores)
    return pretrain_stage(workspace, chain.stores, recipe, code_version=code_version(), progress=progress)


if __name__ == "__main__":
    from jobs.cli import main

    main(["pretrain"])
