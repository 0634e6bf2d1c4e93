"""The controller: find what is due for the checkpoints of a run, have it done, record each exactly once."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from pipeline.base.errors import FailedError, InputError
from pipeline.base.progress import Progress
from pipeline.base.store import Store
from pipeline.checkpoints.resume import check_whole
from pipeline.evaluate.due import Planned, due, plan_evaluations
from pipeline.evaluate.evaluators import SHARES_FEATURES
from pipeline.evaluate.features import load_features, single_thread
from pipeline.evaluate.ledger import Owner, recorded_ids
from pipeline.evaluate.perform import perform
from pipeline.evaluate.spread import Pool
from pipeline.evaluate.subject import Subject
from pipeline.evaluate.suite import EvaluateRecipe
from pipeline.records.dataset import read_dataset_card
from pipeline.records.run import list_checkpoint_cards, read_run_card, step_prefix

_WAIT_FOR_OTHERS_SECONDS = 2.0


@dataclass(frozen=True)
class Evaluated:
    """How many evaluations the suite asks for, how many were done now, and what failed."""

    num_planned: int
    num_done: int
    failures: tuple[str, ...]


def evaluate(workspace: Store, run: str, recipe: EvaluateRecipe, progress: Progress) -> Evaluated:
    """Do what is due for *run*. Needs a ray cluster that is connected.

    One failing evaluation does not stop the others; it is named in the end. Raises InputError when the run has no
    checkpoint or a dataset is missing.
    """
    planned = plan_run(workspace, run, recipe, progress)
    todo = due(planned, recorded_ids(workspace))
    if not todo:
        progress.say(f"evaluations of {run}: all {len(planned)} are recorded already")
        return Evaluated(len(planned), 0, ())
    pool = Pool(min(recipe.max_parallel, len(todo)), recipe.cpus, recipe.gpus)
    try:
        _extract(pool, workspace, todo, progress)
        failures = _perform(pool, workspace, todo, recipe.max_tries, progress)
    finally:
        pool.close()
    return Evaluated(len(planned), len(todo) - len(failures), tuple(failures))


def plan_run(workspace: Store, run: str, recipe: EvaluateRecipe, progress: Progress) -> list[Planned]:
    """Everything that the suite asks for on the whole checkpoints of *run*; damaged ones are named and skipped."""
    read_run_card(workspace, run)
    subjects = []
    for card in list_checkpoint_cards(workspace, run):
        problem = check_whole(workspace, card)
        if problem:
            progress.say(f"checkpoint of step {card.step} is skipped: {problem}")
            continue
        key = f"{step_prefix(run, card.step)}/{card.weights.name}"
        subjects.append(Subject(card.weights.sha256, key, _transform(workspace, run), card.step))
    if not subjects:
        raise InputError(f"run {run!r} has no checkpoint yet", "pretrain it first")
    names = {name for task in recipe.tasks.values() for name in (task.train, task.test)}
    digests = {name: read_dataset_card(workspace, name).digest for name in sorted(names)}
    return plan_evaluations(subjects, recipe, digests)


def _transform(workspace: Store, run: str) -> dict[str, object]:
    transform: dict[str, object] = read_run_card(workspace, run).recipe["transform"]
    return transform


def _extract(pool: Pool, workspace: Store, todo: list[Planned], progress: Progress) -> None:
    """Features first, each once, so that probes of one checkpoint do not compute them twice side by side."""
    wanted: dict[tuple[str, str], tuple[Subject, str]] = {}
    for item in todo:
        if item.key.evaluator in SHARES_FEATURES:
            for dataset in (item.task.train, item.task.test):
                wanted[item.subject.weights_digest, dataset] = (item.subject, dataset)
    if wanted:
        progress.start("features", len(wanted))
        for (subject, dataset), _ in pool.run(list(wanted.values()), _extract_one, workspace):
            progress.advance(note=f"{dataset} of {subject.name}")
        progress.finish()


def _extract_one(workspace: Store, wanted: tuple[Subject, str]) -> None:
    single_thread()
    load_features(workspace, *wanted)


def _perform_one(workspace: Store, owner: Owner, planned: Planned) -> bool:
    single_thread()
    return perform(workspace, planned, owner)


def _perform(pool: Pool, workspace: Store, todo: list[Planned], max_tries: int, progress: Progress) -> list[str]:
    """Do *todo*, retrying what failed; the reasons of what failed for good."""
    owner = Owner.current()
    tries: Counter[str] = Counter()
    failures = []
    progress.start("evaluate", len(todo))
    waiting: list[Planned] = sorted(todo, key=lambda item: item.key.evaluator != "finetune")  # the longest first
    while waiting:
        again = []
        for item, outcome in pool.run(list(waiting), _perform_one, workspace, owner):
            if outcome is True:
                progress.advance(note=item.name)
            elif outcome is False:
                again.append(item)  # somebody else is at it
            else:
                tries[item.key.id] += 1
                if tries[item.key.id] < max_tries:
                    again.append(item)
                else:
                    failures.append(str(outcome).splitlines()[0])
        waiting = due(again, recorded_ids(workspace))
        if waiting and not any(tries[item.key.id] for item in waiting):
            time.sleep(_WAIT_FOR_OTHERS_SECONDS)
    progress.finish()
    return failures


def check_evaluated(evaluated: Evaluated) -> None:
    """Raise FailedError when something failed, naming it."""
    if evaluated.failures:
        raise FailedError(
            f"{len(evaluated.failures)} of {evaluated.num_planned} evaluations failed: {evaluated.failures[0]}",
            "the others are recorded; give the same command again to retry",
        )
