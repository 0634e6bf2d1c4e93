"""What is due: a pure function of checkpoints, suite and ledger."""

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
from pipeline.records.evaluators import PROTOCOL_VERSIONS
from pipeline.records.score import EvaluationKey

FEWSHOT = FewshotSettings()
FEWSHOT_RESIZE, FEWSHOT_CROP = 256, 224  # big_vision configs/common_fewshot.py
_NEEDS_NETWORK = {"classify", "inspect"}  # raw pixels have no head and no filters


@dataclass(frozen=True)
class PlannedEvaluation:
    """One evaluation: its key, what it is of, and its task."""

    key: EvaluationKey
    subject: ModelRef
    task: Task

    @cached_property
    def id(self) -> str:
        """The key's id, computed once."""
        return self.key.id

    @property
    def name(self) -> str:
        """For people: ``linear on digits of step 100``; `` (layer -2)`` and `` (5-shot)`` where that is not as usual,
        and `` seed 1`` where it is not 0."""
        seed = f" seed {self.key.seed}" if self.key.seed else ""
        return f"{self.key.evaluator} on {self.key.task} of {self.subject.name}{_details(self.key.settings)}{seed}"


def _details(settings: dict[str, Any]) -> str:
    """What tells evaluations of one evaluator apart in a suite that has it for several layers, or numbers of shots."""
    layers = settings.get("layers") or ["head-input"]
    details = [f"layer {layers[0]}"] if len(layers) == 1 and layers[0] != "head-input" else []
    if settings.get("shots", FEWSHOT.shots) != FEWSHOT.shots:
        details.append(f"{settings['shots']}-shot")
    return f" ({', '.join(details)})" if details else ""


def seen_by(entry: SuiteEntry, subject: ModelRef) -> ModelRef:
    """*subject* with the input that the entry's protocol asks for, at the network's size.

    Few-shot (big_vision, configs/common_fewshot.py): both sides to 256, the central 224, bilinear; at other sizes in
    proportion. The linear probe (SimCLR App. B): the short side to 224, the central 224, bicubic. No other has one.
    """
    if entry.resolved().get("transform", "model") == "model":
        return subject
    size = subject.evaluation_transform.size
    if entry.evaluator == "fewshot":
        resize = round(size * FEWSHOT_RESIZE / FEWSHOT_CROP)
        transform = EvaluationTransform(size=size, resize=resize, mode="square", filter="bilinear")
    else:
        transform = EvaluationTransform(size=size, resize=size, mode="short", filter="bicubic")
    return replace(subject, transform=transform.model_dump(mode="json"))


def subjects_of(
    entry: SuiteEntry, checkpoints: list[ModelRef], baselines: bool, *, is_complete: bool = True
) -> list[ModelRef]:
    """What an entry judges: checkpoints by step (step 0 is the untrained network), and the baselines.

    While a run is not complete, no checkpoint is the last one.
    """
    trained = [subject for subject in checkpoints if subject.step != 0]  # imported weights have none
    untrained = [subject for subject in checkpoints if subject.step == 0]
    if entry.checkpoints == "last":
        if not is_complete:
            return []
        chosen = trained[-1:]
    else:
        chosen = trained
    if not baselines or entry.evaluator == "inspect":
        return chosen or untrained
    pixels = []
    if checkpoints and entry.evaluator not in _NEEDS_NETWORK:
        pixels = [pixels_like(checkpoints[-1])]
    return pixels + untrained + chosen


def plan_evaluations(
    checkpoints: list[ModelRef], recipe: EvaluateRecipe, dataset_digests: dict[str, str], *, is_complete: bool = True
) -> list[PlannedEvaluation]:
    """Every evaluation that the suite asks for, newest checkpoint last, each once.

    *is_complete*: no newer checkpoint is to come, so that the newest one is the last one.
    Raises InputError for a task that would be judged on what it was trained on.
    """
    _refuse_leaks(recipe, dataset_digests)
    planned: dict[str, PlannedEvaluation] = {}
    for entry in recipe.suite:
        for task_name in entry.tasks:
            task = recipe.tasks[task_name]
            for subject in subjects_of(entry, checkpoints, recipe.baselines, is_complete=is_complete):
                for seed in entry.seeds:
                    seen = seen_by(entry, subject)
                    key = EvaluationKey(
                        weights_digest=seen.weights_digest,
                        evaluator=entry.evaluator,
                        protocol_version=PROTOCOL_VERSIONS[entry.evaluator],
                        task=task_name,
                        dataset_digests=(dataset_digests[task.train], dataset_digests[task.test]),
                        transform=seen.transform,
                        settings=entry.resolved() | task.rule,
                        seed=seed,
                    )
                    item = PlannedEvaluation(key, seen, task)
                    planned.setdefault(item.id, item)
    return list(planned.values())


def _refuse_leaks(recipe: EvaluateRecipe, dataset_digests: dict[str, str]) -> None:
    for name, task in recipe.tasks.items():
        if dataset_digests[task.train] == dataset_digests[task.test]:
            raise InputError(
                f"task {name}: {task.train} and {task.test} hold the same samples, so its scores would mean nothing",
                "name a test dataset with samples of its own",
            )


class Patterns:
    """Patterns of names: ``*``, ``?`` and ``[...]`` as in a shell. One without a seed is meant for every seed, and one
    without details in brackets for all of them."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.texts = tuple(patterns)
        self._compiled = [re.compile(fnmatch.translate(text)) for text in self.texts]

    def place(self, name: str) -> int:
        """Which of them matches *name* first; as many as there are: none."""
        seedless = name.rpartition(" seed ")[0] or name
        plain = seedless.partition(" (")[0]
        names = dict.fromkeys((name, seedless, plain, plain + name[len(seedless) :]))
        for place, pattern in enumerate(self._compiled):
            if any(pattern.match(one) for one in names):
                return place
        return len(self._compiled)

    def match(self, name: str) -> bool:
        """True when one of them matches *name*."""
        return self.place(name) < len(self._compiled)


def state_of(item: PlannedEvaluation, view: LedgerView, cancelled: Patterns, now: float) -> State:
    """How it stands with one evaluation at *now* (seconds since 1970)."""
    state = view.get(item.id, EvaluationState()).state(now)
    return "cancelled" if state not in ("done", "running") and cancelled.match(item.name) else state


def due_evaluations(
    planned: Iterable[PlannedEvaluation],
    view: LedgerView,
    now: float,
    cancelled: Sequence[str] = (),
    priority: Sequence[str] = (),
) -> list[PlannedEvaluation]:
    """What can be started at *now*: by *priority*, then the newest checkpoint first, then the longest work first."""
    unwanted, wanted = Patterns(cancelled), Patterns(priority)
    found = [item for item in planned if state_of(item, view, unwanted, now) == "due"]
    return sorted(found, key=lambda item: _order(item, wanted))


def _order(item: PlannedEvaluation, wanted: Patterns) -> tuple[int, int, int]:
    step = -1 if item.subject.step is None else item.subject.step
    return wanted.place(item.name), -step, 0 if item.key.evaluator == "finetune" else 1
