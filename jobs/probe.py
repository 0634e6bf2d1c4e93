"""``vitpipe probe`` as a module, for ``ray job submit``; what it does stands in ``jobs/one_task.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer

from jobs import scores as tables
from jobs.base.console import make_progress, print_table
from jobs.base.entrypoint import main
from jobs.base.options import Address, Debug, Endpoint, Json, Workspace, print_result, require_workspace, stores_of
from jobs.base.recipe import ChainRecipe
from pipeline.base.config import apply_overrides, build
from pipeline.base.errors import InputError
from pipeline.base.progress import Progress, Silent
from pipeline.base.store.open import open_store
from pipeline.evaluate.discovery import EvaluationRequest, planner_of
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.records.score import ResultFilter
from pipeline.report import query as scores_job
from pipeline.report.query import ScoreQuery, Scores, find_scores

PROBES = ("linear", "sgd", "knn", "ridge", "fewshot")


class ProbeRequest(NamedTuple):
    """A run or weights (*weights*: their path, *name*: what they are called), and what they are judged on.

    *settings*: changes like ``shots=5``, of the one evaluator; of all of them nothing can be set.
    """

    run: str
    weights: str | None
    name: str | None
    train: str
    test: str
    evaluators: Sequence[str]
    settings: Sequence[str] = ()
    max_parallel: int = 2

    @property
    def suite(self) -> str:
        """The name under which the run keeps it."""
        return "-".join([*self.evaluators, "on", self.test])

    def recipe(self) -> EvaluateRecipe:
        """As a suite: of a run the last checkpoint is judged. Raises RecipeError for a setting that there is not."""
        if self.settings and len(self.evaluators) != 1:
            raise InputError(f"{self.settings[0]}: a setting of which evaluator?", "name one, like --evaluator knn")
        own = apply_overrides({}, list(self.settings))
        suite: list[dict[str, Any]] = [
            {"evaluator": name, "tasks": [self.test], "checkpoints": "last", "settings": own}
            for name in self.evaluators
        ]
        tasks = {self.test: {"train": self.train, "test": self.test}}
        tree = {"tasks": tasks, "suite": suite, "baselines": False, "max_parallel": self.max_parallel}
        return build(EvaluateRecipe, tree, self.suite)

    def asked(self, chain: ChainRecipe) -> EvaluationRequest:
        """What the scheduler is asked for. Stores nothing. Raises InputError when there is no such run."""
        recipe, store = self.recipe(), open_store(chain.workspace, chain.stores)
        if self.weights is None:
            planner_of(store, self.run, Silent())
            return EvaluationRequest(self.run, self.suite, lambda: recipe)
        # Imported here: it brings torch along, which all others do without until they are checked.
        from pipeline.evaluate.imported_weights import read_weights

        found = read_weights(store, self.weights, self.name or "", chain.stores)
        return EvaluationRequest(found.card.name, self.suite, lambda: recipe, weights=found)


def judge(
    chain: ChainRecipe, wish: ProbeRequest, progress: Progress, address: str | None, debug: bool
) -> tuple[list[Scores], ScoreQuery]:
    """Have it done, unless it is recorded already, and find its scores. Raises FailedError when something failed."""
    from jobs.evaluate import run_evaluate as evaluate
    from pipeline.evaluate.stage import take_weights

    store, asked = open_store(chain.workspace, chain.stores), wish.asked(chain)
    take_weights(store, asked)
    evaluate(chain, asked, progress, address, debug)
    evaluator = wish.evaluators[0] if len(wish.evaluators) == 1 else None
    wanted = ScoreQuery(runs=(asked.run,), only=ResultFilter(task=wish.test, evaluator=evaluator))
    return find_scores(store, wanted), wanted


Run = Annotated[str | None, typer.Argument(help="a run, whose last checkpoint is judged; or imported weights, by name")]
Settings = Annotated[list[str] | None, typer.Argument(help="settings of the evaluator, like l2=[0.1,1] or steps=500")]
Train = Annotated[str, typer.Option(help="training dataset of the task")]
Test = Annotated[str, typer.Option(help="test dataset of the task")]
Weights = Annotated[
    str | None, typer.Option(metavar="PATH|URI", help="instead of a run: a model.safetensors, or an import's folder")
]
Name = Annotated[str | None, typer.Option(help="what --weights are called in scores")]
MaxParallel = Annotated[int, typer.Option(min=1, help="workers")]


def probe(
    train: Train,
    test: Test,
    run: Run = None,
    settings: Settings = None,
    evaluator: Annotated[
        list[str] | None, typer.Option(help="linear, sgd, knn, ridge or fewshot; repeatable; default: three of them")
    ] = None,
    weights: Weights = None,
    name: Name = None,
    max_parallel: MaxParallel = 2,
    workspace: Workspace = None,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Probe frozen features on one task: linear, k-NN and few-shot, or those that are named.

    `vitpipe probe RUN -w ws --train birds-train --test birds-test`, with a setting
    `vitpipe probe RUN shots=5 --evaluator fewshot ...`. What is recorded already is not computed again.
    """

    chosen = tuple(evaluator or ("linear", "knn", "fewshot"))
    unknown = [one for one in chosen if one not in PROBES]
    if unknown:
        raise InputError(f"--evaluator {unknown[0]}: there is no such probe", f"there are {', '.join(PROBES)}")
    wish = ProbeRequest(run or "", weights, name, train, test, chosen, settings or (), max_parallel=max_parallel)
    _judge(wish, workspace, endpoint, address, as_json, debug)


def _judge(
    wish: ProbeRequest, workspace: str | None, endpoint: str | None, address: str | None, as_json: bool, debug: bool
) -> None:

    if wish.weights and "=" in wish.run:  # no run was named, so the first setting stood in its place
        wish = wish._replace(run="", settings=(wish.run, *wish.settings))
    if bool(wish.run) == bool(wish.weights):
        raise InputError("what is to be judged?", "name a run, or --weights, and not both")
    wish.recipe()
    chain = ChainRecipe(workspace=require_workspace(workspace), stores=stores_of(workspace, endpoint))
    found, wanted = judge(chain, wish, make_progress(), address, debug)

    def show() -> None:
        for title, rows in tables.printed(found, wanted):
            print_table(title, tables.SCORE_COLUMNS, rows)

    print_result(as_json, {"workspace": chain.workspace} | scores_job.scores_json(found, wanted), show)


if __name__ == "__main__":
    main(probe)
