"""``vitpipe evaluations``: the evaluations of a run by name: list them, redo or retry, cancel, invalidate.

``evaluate`` is for every day; this is for mistakes: labels that were mended, a machine that failed, work to leave out.
"""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.base.console import print_result, print_text
from jobs.base.entrypoint import main, new_app
from jobs.base.evaluation_request import EvaluateOptions, request_for_run
from jobs.base.options import Address, Debug, Endpoint, Json, Workspace
from jobs.evaluate import change_and_evaluate, names_text
from pipeline.base.store.open import open_store
from pipeline.evaluate.changes import Changes, describe_due

app = new_app(no_args_is_help=True, help="The evaluations of a run by name: list, redo, retry, cancel, invalidate.")
RunOrRecipe = Annotated[
    str, typer.Argument(metavar="RUN|RECIPE", help="a run or imported weights, by name, or a recipe with its suite")
]
Patterns = Annotated[
    list[str], typer.Argument(metavar="PATTERN...", help="names like 'linear on digits of step 100', with * and ?")
]
Suite = Annotated[
    str | None, typer.Option(help="suite: a YAML file, one that ships with vitpipe, or one the run had before")
]
Reason = Annotated[str, typer.Option(help="why something is made void; it is kept")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what matches, and change nothing")]
MaxParallel = Annotated[int | None, typer.Option(min=1, help="workers; wins over the suite's")]


@app.command("list")
def list_evaluations(
    run_or_recipe: RunOrRecipe,
    workspace: Workspace = None,
    suite: Suite = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the evaluations of a suite by state: due in the order of their start, waiting, running, done, failed.

    Reads only. `vitpipe status` shows all runs, and why something failed.
    """
    chain, request = request_for_run(EvaluateOptions(run_or_recipe, suite), None, workspace, endpoint)
    names = describe_due(open_store(chain.workspace, chain.stores), request)
    print_result(as_json, names, lambda: print_text(names_text(names, with_done=True)))


@app.command()
def redo(
    run_or_recipe: RunOrRecipe,
    patterns: Patterns,
    workspace: Workspace = None,
    suite: Suite = None,
    reason: Reason = "",
    max_parallel: MaxParallel = None,
    dry_run: DryRun = False,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make what is recorded of these evaluations void, and evaluate what is due.

    `vitpipe evaluations redo RUN 'knn on *' -w ws --reason 'labels were mended'`
    """
    changes = Changes(redo=tuple(patterns), reason=reason)
    _change(run_or_recipe, suite, changes, workspace, endpoint, dry_run, as_json, debug, max_parallel, address)


@app.command()
def retry(
    run_or_recipe: RunOrRecipe,
    workspace: Workspace = None,
    suite: Suite = None,
    reason: Reason = "",
    max_parallel: MaxParallel = None,
    dry_run: DryRun = False,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Try again what failed for good, and evaluate what is due."""
    changes = Changes(retry=True, reason=reason)
    _change(run_or_recipe, suite, changes, workspace, endpoint, dry_run, as_json, debug, max_parallel, address)


@app.command()
def cancel(
    run_or_recipe: RunOrRecipe,
    patterns: Patterns,
    workspace: Workspace = None,
    suite: Suite = None,
    undo: Annotated[bool, typer.Option("--undo", help="take back a cancel; give the same PATTERN")] = False,
    dry_run: DryRun = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Leave these evaluations out from now on; runs nothing. With --undo, let them be due again."""
    changes = Changes(uncancel=tuple(patterns)) if undo else Changes(cancel=tuple(patterns))
    _change(run_or_recipe, suite, changes, workspace, endpoint, dry_run, as_json, debug)


@app.command()
def invalidate(
    run_or_recipe: RunOrRecipe,
    patterns: Patterns,
    workspace: Workspace = None,
    suite: Suite = None,
    reason: Reason = "",
    dry_run: DryRun = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make what is recorded of these evaluations void; runs nothing."""
    changes = Changes(invalidate=tuple(patterns), reason=reason)
    _change(run_or_recipe, suite, changes, workspace, endpoint, dry_run, as_json, debug)


def _change(
    run_or_recipe: str,
    suite: str | None,
    changes: Changes,
    workspace: str | None,
    endpoint: str | None,
    dry_run: bool,
    as_json: bool,
    debug: bool,
    max_parallel: int | None = None,
    address: str | None = None,
) -> None:
    chain, request = request_for_run(EvaluateOptions(run_or_recipe, suite), None, workspace, endpoint)
    request = request.with_options(max_parallel, None, None)
    change_and_evaluate(chain, request, changes, dry_run=dry_run, address=address, as_json=as_json, debug=debug)


if __name__ == "__main__":
    main(app)
