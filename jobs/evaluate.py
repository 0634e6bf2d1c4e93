"""``vitpipe evaluate``: do what is due for the checkpoints of a run, or for weights from anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.base.console import make_progress, print_note, print_result, print_text
from jobs.base.entrypoint import main
from jobs.base.evaluation_request import EvaluateOptions, request_for_run, request_for_weights
from jobs.base.options import Address, Debug, Endpoint, Json, Workspace
from jobs.base.ray_session import connected, import_torch_first, require_cpus
from jobs.base.recipe import ChainRecipe
from pipeline.base.errors import InputError, RefusedError
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.base.units import parse_seconds
from pipeline.evaluate import stage
from pipeline.evaluate.changes import Changes, apply_changes, describe_due
from pipeline.evaluate.discovery import CheckedRequest, EvaluationRequest
from pipeline.evaluate.recipe import EvaluateRecipe

if TYPE_CHECKING:  # it brings ray and torch along
    from pipeline.evaluate.scheduler import ScheduleSummary

_COMMANDS = {"uncancel": "cancel --undo"}  # of `vitpipe evaluations`, where an old option has another name
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
    redo: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    retry: Annotated[bool, typer.Option("--retry", hidden=True)] = False,
    invalidate: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    cancel: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    uncancel: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    reason: Annotated[str, typer.Option(hidden=True)] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what is due, and change nothing")] = False,
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
    `vitpipe evaluations` lists them, and redoes, retries, cancels or invalidates them by name.
    """
    if weights and watch:
        raise InputError("--watch is for a run that goes on; weights do not change", "leave it out")
    options = EvaluateOptions(run_or_recipe or "", suite, train, test, tuple(overrides or ()))
    if weights:
        chain, request = request_for_weights(options, weights, name, workspace, endpoint)
    else:
        chain, request = request_for_run(options, name, workspace, endpoint)
    request = request.with_options(max_parallel, priority, _seconds(every) if watch else None)
    changes = Changes(
        tuple(redo or ()), tuple(invalidate or ()), tuple(cancel or ()), tuple(uncancel or ()), retry, reason
    )
    _point_to_commands({"redo": redo, "retry": retry, "invalidate": invalidate, "cancel": cancel, "uncancel": uncancel})
    change_and_evaluate(chain, request, changes, dry_run=dry_run, address=address, as_json=as_json, debug=debug)


def _point_to_commands(options: dict[str, list[str] | bool | None]) -> None:
    """Say on stderr which command does what the old *options* still do, if any of them is used."""
    used = [name for name, value in options.items() if value]
    if used:
        flags = ", ".join(f"--{name}" for name in used)
        commands = ", ".join(f"vitpipe evaluations {_COMMANDS.get(name, name)}" for name in used)
        print_note(f"{flags}: use {commands}")


def _seconds(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise InputError(f"--every: {error}") from None


def run_evaluate(
    chain: ChainRecipe, request: EvaluationRequest, progress: Progress, address: str | None, debug: bool
) -> ScheduleSummary:
    """Check, connect, evaluate. Raises FailedError when something failed, in the end."""
    checked = stage.check_request(open_store(chain.workspace, chain.stores), request)
    import_torch_first()
    with connected(address, debug):
        return evaluate_connected(chain, request, progress, checked)


def evaluate_connected(
    chain: ChainRecipe, request: EvaluationRequest, progress: Progress, checked: CheckedRequest | None = None
) -> ScheduleSummary:
    """Evaluate on the cluster that ray is connected to. Raises FailedError when something failed, in the end."""
    _require_share(checked.recipe if checked else request.read_recipe())
    summary = stage.evaluate(open_store(chain.workspace, chain.stores), request, progress, checked)
    stage.raise_failed(summary)
    return summary


def change_and_evaluate(
    chain: ChainRecipe,
    request: EvaluationRequest,
    changes: Changes,
    *,
    dry_run: bool,
    address: str | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Make *changes* to what is recorded, evaluate unless they are only marks, and print the result.

    *dry_run*: print which names match, or without changes all names of the suite by state, and change nothing.
    """
    workspace = open_store(chain.workspace, chain.stores)
    if not dry_run:
        stage.import_requested_weights(workspace, request)
    names: dict[str, Any] = {}
    if changes != Changes(reason=changes.reason):
        names = apply_changes(workspace, request, changes, dry_run=dry_run)
    elif dry_run:
        names = describe_due(workspace, request)
    if dry_run or changes.only_marks:
        text = names_text(names) + ("\nnothing was changed" if dry_run else "")
        print_result(as_json, names, lambda: print_text(text))
        return
    summary = run_evaluate(chain, request, make_progress(), address, debug)
    print_result(as_json, names | _summary_json(request, summary), lambda: print_text(_summary_text(request, summary)))


def names_text(names: dict[str, Any], *, with_done: bool = False) -> str:
    """Names of evaluations below their state, or below what is done with them.

    Of *done* only the number, unless *with_done*. *names* are those of ``apply_changes`` or ``describe_due``.
    """
    lines = []
    for kind, value in names.items():
        if kind == "done" and not with_done:
            lines.append(f"done: {len(value)}")
        elif isinstance(value, list) and value:
            lines.append(f"{kind.replace('_', ' ')} ({len(value)}):")
            lines += [f"  {name}" for name in value[:_SHOWN]]
            lines += [f"  and {len(value) - _SHOWN} more"] if len(value) > _SHOWN else []
        elif isinstance(value, list):
            lines.append(f"{kind.replace('_', ' ')}: nothing")
    return "\n".join(lines)


def _summary_json(request: EvaluationRequest, summary: ScheduleSummary) -> dict[str, Any]:
    return {
        "run": request.run,
        "planned": summary.num_planned,
        "recorded": summary.num_recorded,
        "done": summary.num_done,
        "cancelled": list(summary.cancelled),
        "skipped": {str(step): reason for step, reason in summary.skipped.items()},
    }


def _summary_text(request: EvaluationRequest, summary: ScheduleSummary) -> str:
    cancelled = f", {len(summary.cancelled)} cancelled" if summary.cancelled else ""
    return f"{request.run}: {summary.num_done} evaluations done now, {summary.num_planned} in all{cancelled}"


def _require_share(recipe: EvaluateRecipe) -> None:
    """Raise RefusedError when the cluster has less than a worker needs, instead of waiting for it for ever."""
    # Imported here: it brings ray along.
    from pipeline.evaluate.ray_executor import cluster_resources

    require_cpus("evaluate", recipe.cpus)
    available = cluster_resources()
    for name, required in {"GPU": recipe.gpus, **recipe.resources}.items():
        if required > available.get(name, 0):
            raise RefusedError(
                f"evaluate needs {required:g} of {name!r} for each worker, the cluster has {available.get(name, 0):g}",
                "lower gpus or resources of the suite, or start nodes with it",
            )


if __name__ == "__main__":
    main(evaluate)
