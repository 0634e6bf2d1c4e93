"""run.json: made at the first attempt, create-only; another recipe under the same name is refused by field.

A fork is another run that begins with weights, optimizer state and stream position of RUN@STEP: its steps count on
from there, its recipe may differ in anything but what gives that state its meaning (``_FORK_FIELDS``). A moving
average that the parent does not keep begins at its weights; one that the fork does not keep is left behind. run.json
names the parent, for good: later attempts need not name it again.

An extended run has more steps than its recipe says. ``runs/<name>/extend-<steps>.json``, create-only, says so; the
longest counts. A run may only become what it would have been with that many steps from the beginning: the learning
rates of all updates that are done have to be the same. So constant and rsqrt schedules go on, also with a cool-down
that has not begun; cosine and linear ones fall over the whole length, and are refused once the warm-up is over: fork
them, with a new schedule.
"""

from __future__ import annotations

from typing import Any

from pipeline.base.digests import differing_fields, fingerprint
from pipeline.base.errors import InputError, MismatchError
from pipeline.base.store.protocol import Store
from pipeline.pretrain.plan import TrainingData
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.imported import imported_card_key
from pipeline.records.run import (
    Extension,
    OrderParameters,
    RunCard,
    extended,
    extension_key,
    list_steps,
    parse_reference,
    read_checkpoint_card,
    read_run_card,
    run_prefix,
)
from pipeline.train.lr_schedule import Schedule

_POINTS = 10_000  # at which two schedules are compared, at most
# What a fork has in common with its parent. Other data, or another order of it, is a new run: start it with ``init``.
_FORK_FIELDS: dict[str, Any] = {
    "model": True,
    "objective": {"name"},
    "optimizer": {"name"},
    "seed": True,
    "stream": {"batch_size", "partitions", "window"},
}


def open_run_card(
    workspace: Store,
    recipe: PretrainRecipe,
    data: TrainingData,
    code_version: str,
    parent: str | None = None,
    init_sha256: str = "",
) -> RunCard:
    """The card of the run, made if there is none. *parent*: RUN@STEP that it is forked from. *init_sha256*: of init.

    Raises MismatchError naming the differing fields, InputError for a new run with the name of imported weights, and
    both for a parent that it cannot be forked from.
    """
    stream = recipe.stream
    fingerprinted = recipe.fingerprinted(data.digest)
    key = f"{run_prefix(recipe.run)}/run.json"
    if workspace.head(key) is None:
        if workspace.head(imported_card_key(recipe.run)) is not None:
            raise InputError(
                f"{recipe.run!r} is the name of imported weights in {workspace.uri}", "name the run with --run"
            )
        if parent is not None:
            _check_fork(workspace, recipe, data.digest, parent)
        run = RunCard(
            name=recipe.run,
            fingerprint=fingerprint(fingerprinted),
            fingerprinted=fingerprinted,
            recipe=recipe.model_dump(mode="json"),
            dataset_name=data.name,
            dataset_digest=data.digest,
            order=OrderParameters(
                seed=recipe.seed, partitions=stream.partitions, window=stream.window, batch_size=stream.batch_size
            ),
            code_version=code_version,
            parent=parent,
            init_sha256=init_sha256,
        )
        if workspace.put_if_absent(key, run.to_json()):
            return run
    existing = read_run_card(workspace, recipe.run)
    _check_same(workspace, recipe, data.digest, existing, parent)
    return existing


def _check_same(workspace: Store, recipe: PretrainRecipe, digest: str, existing: RunCard, parent: str | None) -> None:
    steps = int(existing.recipe["steps"])
    if recipe.steps == extended(workspace, existing):
        recipe = recipe.model_copy(update={"steps": steps})  # the recipe of an extended run may say its new length
    fingerprinted = recipe.fingerprinted(digest)
    is_same = fingerprint(fingerprinted) == existing.fingerprint
    fields = [] if is_same else differing_fields(fingerprinted, existing.fingerprinted)
    if parent is not None and parent != existing.parent:
        fields.append(f"forked from: {existing.parent or 'nothing'} -> {parent}")
    if fields:
        raise MismatchError(
            f"run {recipe.run!r} exists with another recipe: {'; '.join(fields)}",
            "name another run, or undo the change",
        )


def _check_fork(workspace: Store, recipe: PretrainRecipe, dataset_digest: str, reference: str) -> None:
    """Raises InputError when there is no such checkpoint, MismatchError naming the fields that differ."""
    run, step = parse_reference(reference)
    if run == recipe.run:
        raise InputError(f"a run cannot be forked from itself ({reference})", "name the new run with --run")
    parent = read_run_card(workspace, run)
    read_checkpoint_card(workspace, run, step)
    parent_fields = _fork_fields(PretrainRecipe.model_validate(parent.recipe))
    fields = differing_fields(
        _fork_fields(recipe) | {"dataset_digest": dataset_digest},
        parent_fields | {"dataset_digest": parent.dataset_digest},
    )
    if fields:
        raise MismatchError(
            f"run {recipe.run!r} cannot be forked from {reference}: {'; '.join(fields)}",
            f"undo the change, or start it from weights alone with init: {reference}",
        )
    if step >= recipe.steps:
        raise InputError(f"{reference} is at step {step}, so steps {recipe.steps} leaves nothing to do", "raise steps")


def _fork_fields(recipe: PretrainRecipe) -> dict[str, Any]:
    fields: dict[str, Any] = recipe.model_dump(mode="json", include=_FORK_FIELDS)
    return fields


def extend(workspace: Store, run: RunCard, recipe: PretrainRecipe, steps: int) -> None:
    """Let *run* have *steps* steps. Raises InputError for fewer than it has, MismatchError for other rates."""
    before = extended(workspace, run)
    if steps == before:
        return
    if steps < before:
        raise InputError(f"run {run.name} has {before} steps already; --extend {steps} would shorten it")
    done = max(list_steps(workspace, run.name), default=0)
    step = _first_difference(recipe, before, steps, done)
    if step is not None:
        raise MismatchError(
            f"run {run.name} cannot be extended from {before} to {steps} steps: by its {recipe.schedule.decay} "
            f"schedule update {step + 1}, which is done, would have had another learning rate",
            f"fork it: --run ANOTHER --from {run.name}@{done} steps={steps}, with the schedule that is to follow",
        )
    record = Extension(run=run.name, steps=steps, before=before, done=done)
    workspace.put_if_absent(extension_key(run.name, steps), record.to_json())


def _first_difference(recipe: PretrainRecipe, before: int, after: int, done: int) -> int | None:
    """The first of the updates that are done whose learning rate depends on the run's length."""
    batch = recipe.stream.batch_size
    old, new = (Schedule.of(recipe.schedule, recipe.optimizer.learning_rate, steps, batch) for steps in (before, after))
    stride = max(1, done // _POINTS)
    compared = [*range(0, done, stride), done - 1] if done else []
    return next((step for step in compared if old.rate(step * batch) != new.rate(step * batch)), None)
