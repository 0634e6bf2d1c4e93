"""``vitpipe evaluate``: do what is due for the checkpoints of a run, or for weights from anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.asking import RECIPE_SUITE, Asked
from jobs.cluster import connected, import_torch_first, require_cpus
from jobs.recipe import ChainRecipe
from pipeline.base.errors import RefusedError
from pipeline.base.progress import Progress
from pipeline.base.store import Store, open_store
from pipeline.evaluate.scheduler.by_name import plan_all
from pipeline.evaluate.scheduler.planning import refuse_empty
from pipeline.evaluate.suite import EvaluateRecipe

if TYPE_CHECKING:
    from pipeline.evaluate.scheduler.loop import Outcome


def evaluate(chain: ChainRecipe, asked: Asked, progress: Progress, address: str | None, debug: bool) -> Outcome:
    """Check, connect, evaluate."""
    _check_planned(open_store(chain.workspace, chain.stores), asked)
    import_torch_first()
    with connected(address, debug):
        return evaluate_asked(chain, asked, progress)


def _check_planned(workspace: Store, asked: Asked) -> None:
    """Refuse before anything starts what the scheduler would: datasets that are missing or leak, nothing to judge.

    What it learns of leaks is remembered, so that the scheduler need not read the indexes again.
    """
    planner = asked.planner(workspace)
    plan_all(workspace, asked.run, [asked.read_recipe()], planner=planner)
    if asked.every_seconds is None:
        refuse_empty(planner)


def take_weights(workspace: Store, asked: Asked) -> None:
    """Store the weights that are asked for in *workspace*, if any, once it is known that the suite can be planned."""
    if asked.weights is not None:
        from pipeline.evaluate.imported import keep_weights  # noqa: PLC0415 - brings torch along

        plan_all(workspace, asked.run, [asked.read_recipe()], planner=asked.planner(workspace))
        keep_weights(workspace, asked.weights)


def evaluate_connected(chain: ChainRecipe, run: str, recipe: EvaluateRecipe, progress: Progress) -> Outcome:
    """Evaluate the suite of a recipe on the cluster that ray is connected to. Raises as ``evaluate_asked``."""
    return evaluate_asked(chain, Asked(run, RECIPE_SUITE, lambda: recipe), progress)


def evaluate_asked(chain: ChainRecipe, asked: Asked, progress: Progress) -> Outcome:
    """Evaluate on the cluster that ray is connected to. Raises FailedError when something failed, in the end."""
    # Imported here: it brings ray and torch along, which a refused recipe does without.
    from pipeline.evaluate.stage import check_evaluated  # noqa: PLC0415
    from pipeline.evaluate.stage import evaluate as evaluate_stage  # noqa: PLC0415

    _require_share(asked.read_recipe())
    workspace = open_store(chain.workspace, chain.stores)
    outcome = evaluate_stage(workspace, asked.run, asked.read_recipe, progress, asked.every_seconds, asked.suite)
    check_evaluated(outcome)
    return outcome


def _require_share(recipe: EvaluateRecipe) -> None:
    """Refuse what the cluster can never place, instead of waiting for it for ever."""
    from pipeline.evaluate.spread import cluster_resources  # noqa: PLC0415 - brings ray along

    require_cpus("evaluate", recipe.cpus)
    there = cluster_resources()
    for name, needed in {"GPU": recipe.gpus, **recipe.resources}.items():
        if needed > there.get(name, 0):
            raise RefusedError(
                f"evaluate needs {needed:g} of {name!r} for each worker, the cluster has {there.get(name, 0):g}",
                "lower gpus or resources of the suite, or start nodes with it",
            )


if __name__ == "__main__":
    from jobs.cli import main

    main(["evaluate"])
