"""``vitpipe evaluate``: do what is due for the checkpoints of a run, or for weights from anywhere."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any

import typer

from jobs.base import evaluation_request as asking
from jobs.base.console import make_progress, print_text
from jobs.base.entrypoint import main
from jobs.base.evaluation_request import RECIPE_SUITE, EvaluateOptions
from jobs.base.options import (
    Address,
    Debug,
    Endpoint,
    Json,
    Workspace,
    changes,
    print_result,
    require_workspace,
    stores_of,
)
from jobs.base.ray_session import connected, import_torch_first, require_cpus
from jobs.base.recipe import ChainRecipe
from pipeline.base.errors import InputError, RecipeError, RefusedError
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.base.units import parse_seconds
from pipeline.evaluate import changes as names
from pipeline.evaluate.discovery import EvaluationRequest
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.scheduler import Outcome
from pipeline.evaluate.stage import _check_planned
from pipeline.pretrain.recipe import NAME_PATTERN


def run_evaluate(
    chain: ChainRecipe, asked: EvaluationRequest, progress: Progress, address: str | None, debug: bool
) -> Outcome:
    """Check, connect, evaluate."""
    _check_planned(open_store(chain.workspace, chain.stores), asked)
    import_torch_first()
    with connected(address, debug):
        return evaluate_asked(chain, asked, progress)


def evaluate_connected(chain: ChainRecipe, run: str, recipe: EvaluateRecipe, progress: Progress) -> Outcome:
    """Evaluate the suite of a recipe on the cluster that ray is connected to. Raises as ``evaluate_asked``."""
    return evaluate_asked(chain, EvaluationRequest(run, RECIPE_SUITE, lambda: recipe), progress)


def evaluate_asked(chain: ChainRecipe, asked: EvaluationRequest, progress: Progress) -> Outcome:
    """Evaluate on the cluster that ray is connected to. Raises FailedError when something failed, in the end."""
    # Imported here: it brings ray and torch along, which a refused recipe does without.
    from pipeline.evaluate.stage import check_evaluated
    from pipeline.evaluate.stage import evaluate as evaluate_stage

    _require_share(asked.read_recipe())
    workspace = open_store(chain.workspace, chain.stores)
    outcome = evaluate_stage(workspace, asked.run, asked.read_recipe, progress, asked.every_seconds, asked.suite)
    check_evaluated(outcome)
    return outcome


def _require_share(recipe: EvaluateRecipe) -> None:
    """Refuse what the cluster can never place, instead of waiting for it for ever."""
    from pipeline.evaluate.ray_executor import cluster_resources

    require_cpus("evaluate", recipe.cpus)
    there = cluster_resources()
    for name, required in {"GPU": recipe.gpus, **recipe.resources}.items():
        if required > there.get(name, 0):
            raise RefusedError(
                f"evaluate needs {required:g} of {name!r} for each worker, the cluster has {there.get(name, 0):g}",
                "lower gpus or resources of the suite, or start nodes with it",
            )


_SHOWN = 40  # names of a kind, on a terminal; --json has them all


def evaluate(
    run_or_recipe: Annotated[
        str | None, typer.Argument(metavar="RUN|RECIPE", help="a run, or a recipe with its suite; a run in -w wins")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="changes to the suite, like max_parallel=4; to a recipe, like evaluate.max_parallel=4"),
    ] = None,
    workspace: Workspace = None,
    suite: Annotated[
        str | None, typer.Option(help="suite: a YAML file, one that ships with vitpipe, or one the run had before")
    ] = None,
    train: Annotated[str | None, typer.Option(help="training dataset of the task, without a recipe")] = None,
    test: Annotated[str | None, typer.Option(help="test dataset of the task, without a recipe")] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="PATH|URI", help="instead of a run: a model.safetensors, or the folder of an import"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="what --weights are called in scores; default: imported- and their digest")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="take up new checkpoints until the run is complete")] = False,
    every: Annotated[str, typer.Option(help="between two looks with --watch, like 30s, 10m or 2h")] = "10m",
    max_parallel: Annotated[int | None, typer.Option(min=1, help="workers; wins over the suite's")] = None,
    priority: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="names that go first, like 'knn on *'; repeatable")
    ] = None,
    redo: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="make what is recorded of these void, and run")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="try again what failed for good, and run")] = False,
    invalidate: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="make what is recorded of these void; runs nothing")
    ] = None,
    cancel: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="these are not wanted from now on; runs nothing")
    ] = None,
    uncancel: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="take back a --cancel; runs nothing")
    ] = None,
    reason: Annotated[str, typer.Option(help="why something is made void; it is kept")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what is due or matches, and change nothing")] = False,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate every checkpoint of a run that is not evaluated yet, or weights from anywhere.

    `vitpipe evaluate recipe.yaml`, or `vitpipe evaluate RUN -w ws --suite suite.yaml --watch`, or with a single task
    `--train birds-train --test birds-test`. Given again, it goes on where it stopped; `vitpipe status` shows how far.

    `vitpipe evaluate --weights DIR -w ws --suite suite.yaml` needs no run: DIR is what `vitpipe import` wrote. The
    weights are copied into the workspace, and have a name there (`--name`) that stands where a run's does.

    Evaluations are called like `linear on digits of step 100`; a PATTERN is such a name, with `*` and `?`.
    """
    from pipeline.evaluate.stage import take_weights

    if weights and watch:
        raise InputError("--watch is for a run that goes on; weights do not change", "leave it out")
    given = asking.EvaluateOptions(run_or_recipe or "", suite, train, test, tuple(overrides or ()))
    if weights:
        chain, asked = _of_weights(given, weights, name, workspace, endpoint)
    else:
        chain, asked = _of_run(given, name, workspace, endpoint)
    asked = asked.with_options(max_parallel, priority, _seconds(every) if watch else None)
    store = open_store(chain.workspace, chain.stores)
    marks = names.Changes(
        tuple(redo or ()), tuple(invalidate or ()), tuple(cancel or ()), tuple(uncancel or ()), retry, reason
    )
    if not dry_run:
        take_weights(store, asked)
    found: dict[str, Any] = {}
    if marks != names.Changes(reason=reason):
        found = names.change(store, asked, marks, dry_run=dry_run)
    if dry_run and not found:
        found = names.what_is_due(store, asked)
    if dry_run or marks.only_marks:
        print_result(as_json, found, lambda: print_text(_shown(found, dry_run)))
        return
    done = run_evaluate(chain, asked, make_progress(), address, debug)
    result = found | {
        "run": asked.run,
        "planned": done.num_planned,
        "recorded": done.num_recorded,
        "done": done.num_done,
        "cancelled": list(done.cancelled),
        "skipped": {str(step): reason for step, reason in done.skipped.items()},
    }
    also = f", {len(done.cancelled)} cancelled" if done.cancelled else ""
    text = f"{asked.run}: {done.num_done} evaluations done now, {done.num_planned} in all{also}"
    print_result(as_json, result, lambda: print_text(text))


def _of_run(
    given: EvaluateOptions, name: str | None, workspace: str | None, endpoint: str | None
) -> tuple[ChainRecipe, EvaluationRequest]:
    """A run, or weights that were imported before, or a recipe that names run and suite.

    With ``-w``, as in ``report``, a run of that name wins over a recipe that ships with vitpipe.
    """

    if not given.run_or_recipe:
        raise InputError("what is to be evaluated?", "name a run, a recipe, or --weights")
    if name:
        raise InputError("--name is for --weights; a run has its own", "leave it out")
    is_recipe = given.is_recipe(workspace)
    if is_recipe and not (workspace and _is_there(given.run_or_recipe, workspace, endpoint)):
        return asking.from_recipe(given, changes(workspace, endpoint))
    chain = ChainRecipe(workspace=require_workspace(workspace), stores=stores_of(workspace, endpoint))
    try:
        return chain, asking.of_run(given, open_store(chain.workspace, chain.stores))
    except (InputError, RecipeError) as error:
        if not is_recipe:
            raise
        other = f"{given.run_or_recipe} is a run there; the recipe is meant with workspace={workspace} instead of -w"
        raise InputError(error.what, f"{error.way_out}; {other}" if error.way_out else other) from None


def _is_there(name: str, workspace: str, endpoint: str | None) -> bool:
    """True when *workspace* has a run, or imported weights, of that name: they win over a recipe of the same."""
    from pipeline.base.progress import Silent
    from pipeline.evaluate.discovery import planner_of

    if not re.fullmatch(NAME_PATTERN, name):
        return False
    try:
        planner_of(open_store(workspace, stores_of(workspace, endpoint)), name, Silent())
    except InputError:
        return False
    return True


def _of_weights(
    given: EvaluateOptions, weights: str, name: str | None, workspace: str | None, endpoint: str | None
) -> tuple[ChainRecipe, EvaluationRequest]:
    """Weights from anywhere, to be told under *name*."""

    first = given.run_or_recipe
    if first and "=" not in first:
        raise InputError(f"{first!r} and --weights are two things to evaluate", "leave one out")
    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        raise InputError(f"--name {name!r} cannot be a name", "letters, digits, '.', '_' and '-', like vit-b16")
    given = replace(given, overrides=((first,) if first else ()) + given.overrides)
    given.check()
    chain = ChainRecipe(workspace=require_workspace(workspace), stores=stores_of(workspace, endpoint))
    store = open_store(chain.workspace, chain.stores)
    return chain, asking.of_weights(given, store, weights, name or "", chain.stores)


def _seconds(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise InputError(f"--every: {error}") from None


def _shown(found: dict[str, Any], dry_run: bool) -> str:
    lines = []
    for what, value in found.items():
        if what == "done":
            lines.append(f"done: {len(value)}")
        elif isinstance(value, list) and value:
            lines.append(f"{what.replace('_', ' ')} ({len(value)}):")
            lines += [f"  {name}" for name in value[:_SHOWN]]
            lines += [f"  and {len(value) - _SHOWN} more"] if len(value) > _SHOWN else []
        elif isinstance(value, list):
            lines.append(f"{what.replace('_', ' ')}: nothing")
    return "\n".join([*lines, "nothing was changed"] if dry_run else lines)


if __name__ == "__main__":
    main(evaluate)
