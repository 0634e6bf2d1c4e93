"""``vitpipe probe``: probe the frozen features of a run's last checkpoint, or of imported weights, on one task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer

from jobs.base.console import make_progress, print_result, print_table
from jobs.base.entrypoint import main
from jobs.base.options import Address, Debug, Endpoint, Json, Workspace, workspace_recipe
from jobs.base.recipe import ChainRecipe
from jobs.evaluate import run_evaluate
from jobs.scores import SCORE_COLUMNS, score_tables
from pipeline.base.config import apply_overrides, build
from pipeline.base.errors import InputError
from pipeline.base.progress import Silent
from pipeline.base.store.open import open_store
from pipeline.evaluate.discovery import EvaluationRequest, make_planner
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.stage import import_requested_weights
from pipeline.records.evaluators import default_probes, probe_names
from pipeline.records.score import ResultFilter
from pipeline.report.query import ScoreQuery, find_scores, scores_json

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
    evaluators = tuple(evaluator or default_probes())
    unknown = [kind for kind in evaluators if kind not in probe_names()]
    if unknown:
        raise InputError(f"--evaluator {unknown[0]}: there is no such probe", f"there are {', '.join(probe_names())}")
    request = ProbeRequest(run or "", weights, name, train, test, evaluators, settings or (), max_parallel=max_parallel)
    run_probe(request, workspace, endpoint, address, as_json, debug)


class ProbeRequest(NamedTuple):
    """A run or weights (*weights*: their path, *name*: what they are called), and what they are judged on.

    *settings*: changes like ``shots=5`` of the evaluator; where several are named, none may be set.
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
        """The name under which the suite is stored with the run."""
        return "-".join([*self.evaluators, "on", self.test])

    def recipe(self) -> EvaluateRecipe:
        """As a suite: of a run the last checkpoint is judged. Raises RecipeError for an unknown setting."""
        if self.settings and len(self.evaluators) != 1:
            raise InputError(f"{self.settings[0]}: a setting of which evaluator?", "name one, like --evaluator knn")
        settings = apply_overrides({}, list(self.settings))
        suite: list[dict[str, Any]] = [
            {"evaluator": name, "tasks": [self.test], "checkpoints": "last", "settings": settings}
            for name in self.evaluators
        ]
        tasks = {self.test: {"train": self.train, "test": self.test}}
        tree = {"tasks": tasks, "suite": suite, "baselines": False, "max_parallel": self.max_parallel}
        return build(EvaluateRecipe, tree, self.suite)

    def evaluation_request(self, chain: ChainRecipe) -> EvaluationRequest:
        """For the scheduler. Stores nothing. Raises InputError when there is no such run."""
        recipe, store = self.recipe(), open_store(chain.workspace, chain.stores)
        if self.weights is None:
            make_planner(store, self.run, Silent())
            return EvaluationRequest(self.run, self.suite, lambda: recipe)
        # Imported here: it brings torch along, which all others do without until they are checked.
        from pipeline.evaluate.imported_weights import read_weights

        weights = read_weights(store, self.weights, self.name or "", chain.stores)
        return EvaluationRequest(weights.card.name, self.suite, lambda: recipe, weights=weights)


def run_probe(
    probe: ProbeRequest, workspace: str | None, endpoint: str | None, address: str | None, as_json: bool, debug: bool
) -> None:
    """Evaluate, unless it is recorded already, and print the scores. Raises FailedError when something failed."""
    if probe.weights and "=" in probe.run:  # no run was named, so the first setting was parsed as the run
        probe = probe._replace(run="", settings=(probe.run, *probe.settings))
    if bool(probe.run) == bool(probe.weights):
        raise InputError("what is to be judged?", "name a run, or --weights, and not both")
    probe.recipe()  # a setting that is wrong is refused before anything is looked up
    chain = workspace_recipe(workspace, endpoint)
    request = probe.evaluation_request(chain)
    store = open_store(chain.workspace, chain.stores)
    import_requested_weights(store, request)
    run_evaluate(chain, request, make_progress(), address, debug)
    evaluator = probe.evaluators[0] if len(probe.evaluators) == 1 else None
    query = ScoreQuery(runs=(request.run,), only=ResultFilter(task=probe.test, evaluator=evaluator))
    scores = find_scores(store, query)

    def show() -> None:
        for title, rows in score_tables(scores, query):
            print_table(title, SCORE_COLUMNS, rows)

    print_result(as_json, {"workspace": chain.workspace} | scores_json(scores, query), show)


if __name__ == "__main__":
    main(probe)
