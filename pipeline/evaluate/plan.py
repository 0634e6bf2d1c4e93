"""The plan: which evaluations a suite lists, in which state each is, and which can start now, in what order.

Pure functions of the checkpoints, the suite and a view of the ledger; nothing here reads a store.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pipeline.base.errors import InputError
from pipeline.evaluate.ledger import EvaluationState, LedgerView, State
from pipeline.evaluate.model_ref import ModelRef, pixels_like
from pipeline.evaluate.recipe import EvaluateRecipe, FewshotSettings, SuiteEntry, Task
from pipeline.images.transforms import EvaluationTransform
from pipeline.records.evaluators import EVALUATORS
from pipeline.records.score import EvaluationKey

_DEFAULT_SHOTS = FewshotSettings().shots
_FEWSHOT_RESIZE, _FEWSHOT_CROP = 256, 224  # pixels; big_vision configs/common_fewshot.py


@dataclass(frozen=True)
class PlannedEvaluation:
    """One evaluation: its key, the model that it judges, and its task."""

    key: EvaluationKey
    model_ref: ModelRef
    task: Task

    @cached_property
    def id(self) -> str:
        """The key's id, computed once."""
        return self.key.id

    @property
    def name(self) -> str:
        """For people: ``linear on digits of step 100``.

        With `` (layer -2)`` and `` (5-shot)`` where they are not the default, and `` seed 1`` where it is not 0.
        """
        seed = f" seed {self.key.seed}" if self.key.seed else ""
        return f"{self.key.evaluator} on {self.key.task} of {self.model_ref.name}{_details(self.key.settings)}{seed}"


def _details(settings: dict[str, Any]) -> str:
    """What distinguishes evaluations of one evaluator in a suite that has it for several layers or numbers of shots."""
    layers = settings.get("layers") or ["head-input"]
    details = [f"layer {layers[0]}"] if len(layers) == 1 and layers[0] != "head-input" else []
    if settings.get("shots", _DEFAULT_SHOTS) != _DEFAULT_SHOTS:
        details.append(f"{settings['shots']}-shot")
    return f" ({', '.join(details)})" if details else ""


def plan_evaluations(
    checkpoints: list[ModelRef], recipe: EvaluateRecipe, dataset_digests: dict[str, str], *, is_complete: bool = True
) -> list[PlannedEvaluation]:
    """Every evaluation that the suite asks for, newest checkpoint last, each once.

    *is_complete*: no newer checkpoint is to come, so the newest one is the last one. Raises InputError for a task whose
    two datasets hold the same samples.
    """
    _refuse_equal_datasets(recipe, dataset_digests)
    planned: dict[str, PlannedEvaluation] = {}
    for entry in recipe.suite:
        for task_name in entry.tasks:
            task = recipe.tasks[task_name]
            for model_ref in _models_of(entry, checkpoints, recipe.baselines, is_complete=is_complete):
                for seed in entry.seeds:
                    transformed = _with_protocol_transform(entry, model_ref)
                    key = EvaluationKey(
                        weights_digest=transformed.weights_digest,
                        evaluator=entry.evaluator,
                        protocol_version=EVALUATORS[entry.evaluator].protocol_version,
                        task=task_name,
                        dataset_digests=(dataset_digests[task.train], dataset_digests[task.test]),
                        transform=transformed.transform,
                        settings=entry.resolved() | task.rule,
                        seed=seed,
                    )
                    evaluation = PlannedEvaluation(key, transformed, task)
                    planned.setdefault(evaluation.id, evaluation)
    return list(planned.values())


def _refuse_equal_datasets(recipe: EvaluateRecipe, dataset_digests: dict[str, str]) -> None:
    for name, task in recipe.tasks.items():
        if dataset_digests[task.train] == dataset_digests[task.test]:
            raise InputError(
                f"task {name}: {task.train} and {task.test} hold the same samples, so its scores would mean nothing",
                "name a test dataset with samples of its own",
            )


def _models_of(entry: SuiteEntry, checkpoints: list[ModelRef], baselines: bool, *, is_complete: bool) -> list[ModelRef]:
    """The models that an entry judges: checkpoints by step (step 0 is the untrained network), and the baselines.

    While a run is not complete, no checkpoint is the last one.
    """
    trained = [model_ref for model_ref in checkpoints if model_ref.step != 0]  # the step of imported weights is None
    untrained = [model_ref for model_ref in checkpoints if model_ref.step == 0]
    if entry.checkpoints == "last":
        if not is_complete:
            return []
        chosen = trained[-1:]
    else:
        chosen = trained
    if not baselines or not EVALUATORS[entry.evaluator].has_scores:
        return chosen or untrained
    pixels = []
    if checkpoints and not EVALUATORS[entry.evaluator].needs_network:
        pixels = [pixels_like(checkpoints[-1])]
    return pixels + untrained + chosen


def _with_protocol_transform(entry: SuiteEntry, model_ref: ModelRef) -> ModelRef:
    """*model_ref* with the input that the entry's protocol asks for, at the network's size.

    Few-shot (big_vision, configs/common_fewshot.py): both sides to 256, the central 224, bilinear; at other sizes in
    proportion. The linear probe (SimCLR App. B): the short side to 224, the central 224, bicubic. No other evaluator
    has a transform of its own.
    """
    if entry.resolved().get("transform", "model") == "model":
        return model_ref
    size = model_ref.evaluation_transform.size
    if EVALUATORS[entry.evaluator].protocol_input == "square":
        resize = round(size * _FEWSHOT_RESIZE / _FEWSHOT_CROP)
        transform = EvaluationTransform(size=size, resize=resize, mode="square", filter="bilinear")
    else:
        transform = EvaluationTransform(size=size, resize=size, mode="short", filter="bicubic")
    return replace(model_ref, transform=transform.model_dump(mode="json"))


class Patterns:
    """Patterns of names: ``*``, ``?`` and ``[...]`` as in a shell.

    A pattern without a seed matches every seed, and one without details in brackets matches all of them.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._compiled = [re.compile(fnmatch.translate(pattern)) for pattern in patterns]

    def rank(self, name: str) -> int:
        """The index of the first pattern that matches *name*; the number of patterns when none does."""
        seedless = name.rpartition(" seed ")[0] or name
        plain = seedless.partition(" (")[0]
        variants = dict.fromkeys((name, seedless, plain, plain + name[len(seedless) :]))
        for index, pattern in enumerate(self._compiled):
            if any(pattern.match(variant) for variant in variants):
                return index
        return len(self._compiled)

    def match(self, name: str) -> bool:
        """True when one of them matches *name*."""
        return self.rank(name) < len(self._compiled)


def state_of(evaluation: PlannedEvaluation, view: LedgerView, cancelled: Patterns, now: float) -> State:
    """The state of one evaluation at *now* (seconds since 1970)."""
    state = view.get(evaluation.id, EvaluationState()).state(now)
    return "cancelled" if state not in ("done", "running") and cancelled.match(evaluation.name) else state


def due_evaluations(
    planned: Iterable[PlannedEvaluation],
    view: LedgerView,
    now: float,
    cancelled: Sequence[str] = (),
    priority: Sequence[str] = (),
) -> list[PlannedEvaluation]:
    """What can be started at *now*: by *priority*, then the newest checkpoint first, then the longest work first."""
    cancelled_patterns, priority_patterns = Patterns(cancelled), Patterns(priority)
    due = [evaluation for evaluation in planned if state_of(evaluation, view, cancelled_patterns, now) == "due"]
    return sorted(due, key=lambda evaluation: _order(evaluation, priority_patterns))


def _order(evaluation: PlannedEvaluation, priority: Patterns) -> tuple[int, int, int]:
    step = -1 if evaluation.model_ref.step is None else evaluation.model_ref.step
    return priority.rank(evaluation.name), -step, 0 if EVALUATORS[evaluation.key.evaluator].is_training else 1
