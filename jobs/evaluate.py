"""``vitpipe evaluate``: do what is due for the checkpoints of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.cluster import connected, import_torch_first, require_cpus
from jobs.recipe import ChainRecipe
from pipeline.base.config import build
from pipeline.base.progress import Progress
from pipeline.base.store import open_store
from pipeline.evaluate.suite import EvaluateRecipe
from pipeline.records.run import list_checkpoint_cards, read_run_card

if TYPE_CHECKING:
    from pipeline.evaluate.stage import Evaluated


def evaluate(
    chain: ChainRecipe, run: str, recipe: EvaluateRecipe, progress: Progress, address: str | None, debug: bool
) -> Evaluated:
    """Check, connect, evaluate."""
    workspace = open_store(chain.workspace, chain.stores)
    read_run_card(workspace, run)
    list_checkpoint_cards(workspace, run)
    import_torch_first()
    with connected(address, debug):
        return evaluate_connected(chain, run, recipe, progress)


def evaluate_connected(chain: ChainRecipe, run: str, recipe: EvaluateRecipe, progress: Progress) -> Evaluated:
    """Evaluate on the cluster that ray is connected to. Raises FailedError when something failed, in the end."""
    # Imported here: it brings ray and torch along, which a refused recipe does without.
    from pipeline.evaluate.stage import check_evaluated  # noqa: PLC0415
    from pipeline.evaluate.stage import evaluate as evaluate_stage  # noqa: PLC0415

    require_cpus("evaluate", recipe.cpus)
    evaluated = evaluate_stage(open_store(chain.workspace, chain.stores), run, recipe, progress)
    check_evaluated(evaluated)
    return evaluated


def default_suite(train: str, test: str) -> EvaluateRecipe:
    """The probes on one task, for an evaluation without a recipe."""
    suite = [{"evaluator": name, "tasks": ["task"]} for name in ("linear", "knn", "fewshot")]
    return build(EvaluateRecipe, {"tasks": {"task": {"train": train, "test": test}}, "suite": suite}, "evaluate")


if __name__ == "__main__":
    from jobs.cli import main

    main(["evaluate"])
