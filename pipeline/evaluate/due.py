"""What is due: a pure function of checkpoints, suite and ledger."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.base.errors import InputError
from pipeline.evaluate.subject import Subject
from pipeline.evaluate.suite import EvaluateRecipe, SuiteEntry, Task
from pipeline.records.score import PIXELS, EvaluationKey

PROTOCOL_VERSIONS = {"linear": 1, "knn": 1, "fewshot": 1, "finetune": 1, "classify": 1, "inspect": 1}
_NEEDS_NETWORK = {"classify", "inspect"}  # raw pixels have no head and no filters


@dataclass(frozen=True)
class Planned:
    """One evaluation: its key, what it is of, and its task."""

    key: EvaluationKey
    subject: Subject
    task: Task

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.key.evaluator} on {self.key.task} of {self.subject.name}"


def subjects_of(entry: SuiteEntry, checkpoints: list[Subject], baselines: bool) -> list[Subject]:
    """What an entry judges: checkpoints by step (step 0 is the untrained network), and the baselines."""
    trained = [subject for subject in checkpoints if subject.step]
    untrained = [subject for subject in checkpoints if subject.step == 0]
    chosen = trained[-1:] if entry.checkpoints == "last" else trained
    if not baselines or entry.evaluator == "inspect":
        return chosen or untrained
    pixels = []
    if checkpoints and entry.evaluator not in _NEEDS_NETWORK:
        pixels = [Subject(PIXELS, "", checkpoints[-1].transform, None)]
    return pixels + untrained + chosen


def plan_evaluations(
    checkpoints: list[Subject], recipe: EvaluateRecipe, dataset_digests: dict[str, str]
) -> list[Planned]:
    """Every evaluation that the suite asks for, newest checkpoint last, each once.

    Raises InputError for a task that would be judged on what it was trained on.
    """
    _refuse_leaks(recipe, dataset_digests)
    planned: dict[str, Planned] = {}
    for entry in recipe.suite:
        for task_name in entry.tasks:
            task = recipe.tasks[task_name]
            for subject in subjects_of(entry, checkpoints, recipe.baselines):
                for seed in entry.seeds:
                    key = EvaluationKey(
                        weights_digest=subject.weights_digest,
                        evaluator=entry.evaluator,
                        protocol_version=PROTOCOL_VERSIONS[entry.evaluator],
                        task=task_name,
                        dataset_digests=(dataset_digests[task.train], dataset_digests[task.test]),
                        transform=subject.transform,
                        settings=entry.resolved() | {"validation": task.validation},
                        seed=seed,
                    )
                    planned.setdefault(key.id, Planned(key, subject, task))
    return list(planned.values())


def _refuse_leaks(recipe: EvaluateRecipe, dataset_digests: dict[str, str]) -> None:
    for name, task in recipe.tasks.items():
        if dataset_digests[task.train] == dataset_digests[task.test]:
            raise InputError(
                f"task {name}: {task.train} and {task.test} hold the same samples, so its scores would mean nothing",
                "name a test dataset with samples of its own",
            )


def due(planned: list[Planned], recorded: set[str]) -> list[Planned]:
    """Those without a result."""
    return [item for item in planned if item.key.id not in recorded]
