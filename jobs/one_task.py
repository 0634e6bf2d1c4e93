"""``vitpipe probe`` and ``vitpipe transfer``: one network on one task, now; recorded like every other evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jobs.asking import Asked
from jobs.only import Only
from jobs.recipe import ChainRecipe
from jobs.scores import Scores, Wanted, find_scores
from pipeline.base.config import apply_overrides, build
from pipeline.base.errors import InputError
from pipeline.base.progress import Progress, Silent
from pipeline.base.store import open_store
from pipeline.evaluate.scheduler.planning import planner_of
from pipeline.evaluate.suite import EvaluateRecipe

PROBES = ("linear", "sgd", "knn", "ridge", "fewshot")


class Wish(NamedTuple):
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

    def asked(self, chain: ChainRecipe) -> Asked:
        """What the scheduler is asked for. Stores nothing. Raises InputError when there is no such run."""
        recipe, store = self.recipe(), open_store(chain.workspace, chain.stores)
        if self.weights is None:
            planner_of(store, self.run, Silent())
            return Asked(self.run, self.suite, lambda: recipe)
        # Imported here: it brings torch along, which all others do without until they are checked.
        from pipeline.evaluate.imported import read_weights  # noqa: PLC0415

        found = read_weights(store, self.weights, self.name or "", chain.stores)
        return Asked(found.card.name, self.suite, lambda: recipe, weights=found)


def judge(
    chain: ChainRecipe, wish: Wish, progress: Progress, address: str | None, debug: bool
) -> tuple[list[Scores], Wanted]:
    """Have it done, unless it is recorded already, and find its scores. Raises FailedError when something failed."""
    from jobs.evaluate import evaluate, take_weights  # noqa: PLC0415 - not before the wish is found right

    store, asked = open_store(chain.workspace, chain.stores), wish.asked(chain)
    take_weights(store, asked)
    evaluate(chain, asked, progress, address, debug)
    evaluator = wish.evaluators[0] if len(wish.evaluators) == 1 else None
    wanted = Wanted(runs=(asked.run,), only=Only(task=wish.test, evaluator=evaluator))
    return find_scores(store, wanted), wanted
