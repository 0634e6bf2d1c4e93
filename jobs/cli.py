"""The command ``vitpipe``. Each command is thin: parse, build, call, exit code.

Exit codes: 0 done; 1 failed during the work; 2 could be known before (usage, recipe, input); 3 interrupted, resumable.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs.console import make_progress, print_json, print_table, print_text
from jobs.recipe import ChainRecipe, ShardStage, load_chain, require
from pipeline import __version__
from pipeline.base.config import apply_overrides, build
from pipeline.base.errors import FailedError, InputError, InterruptedRunError, RecipeError, VitpipeError
from pipeline.base.store import Stores, normalise_uri, open_store

app = typer.Typer(
    name="vitpipe",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""From images in object storage to a pretrained Vision Transformer and a page of results.

The chain: **shard** a corpus into WebDataset tars, **pretrain** on them, **evaluate** every checkpoint, **report**.
**run** does all four from one recipe; **demo** does it on embedded images in a few minutes.

Everything lives in a *workspace*, a folder or an s3://bucket/prefix; give a command again and it goes on where it
stopped.

Exit codes: 0 done · 1 failed during the work · 2 refused before it (usage, recipe, input) · 3 interrupted,
resumable.""",
)

Recipe = Annotated[str, typer.Argument(help="recipe file, or the name of one that ships with vitpipe (tiny)")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="changes, like pretrain.steps=100 or shard.0.max_samples=500")
]
Workspace = Annotated[
    str | None, typer.Option("--workspace", "-w", help="folder or s3://bucket/prefix; wins over the recipe's")
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to use; default: RAY_ADDRESS, else one is started for this command")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout; logs and progress go to stderr")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks and the logs of Ray")]
Endpoint = Annotated[str | None, typer.Option(help="S3 endpoint of the workspace's bucket; default: AWS_ENDPOINT_URL")]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; *arguments* stand before those of the process."""
    signal.signal(signal.SIGTERM, _interrupt)
    given = [*(arguments or []), *sys.argv[1:]]
    debug = "--debug" in given
    try:
        code = app(given, standalone_mode=False)
    except KeyboardInterrupt:
        code = _tell(InterruptedRunError("interrupted", "the same command goes on where it stopped"), debug)
    except VitpipeError as error:
        code = _tell(error, debug)
    except Exception as error:
        code = _tell_other(error, debug)
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)


def _tell_other(error: Exception, debug: bool) -> int:
    """An error that is not ours. Typer carries a click of its own, so usage errors are known by what they can do."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show) and isinstance(code, int):
        show()
        return code
    if type(error).__name__ == "Abort":
        return _tell(InterruptedRunError("interrupted", "the same command goes on where it stopped"), debug)
    if debug:
        raise error
    return _tell(FailedError(f"{type(error).__name__}: {error}", "add --debug to see where"), debug)


def _interrupt(_number: int, _frame: object) -> None:
    raise InterruptedRunError("stopped by SIGTERM", "the same command goes on where it stopped")


def _tell(error: VitpipeError, debug: bool) -> int:
    if debug:
        sys.excepthook(type(error), error, error.__traceback__)
    for line in str(error).splitlines():
        print(f"vitpipe: {line}", file=sys.stderr)  # noqa: T201
    return error.exit_code


def _finish(as_json: bool, result: dict[str, Any], show: Callable[[], None]) -> None:
    if as_json:
        print_json(result)
    else:
        show()


def _changes(workspace: str | None, endpoint: str | None = None) -> dict[str, Any]:
    """Options that stand for top-level values of the recipe."""
    changes: dict[str, Any] = {"workspace": workspace} if workspace else {}
    stores = _stores(workspace, endpoint)
    if stores:
        changes["stores"] = {name: settings.model_dump() for name, settings in stores.items()}
    return changes


def _stores(workspace: str | None, endpoint: str | None) -> Stores:
    if not endpoint:
        return {}
    uri = normalise_uri(workspace or "")
    if not uri.startswith("s3://"):
        raise InputError("--endpoint is for an s3:// workspace", "leave it out")
    return build(ChainRecipe, {"workspace": uri, "stores": {uri.split("/")[2]: {"endpoint": endpoint}}}).stores


def _needed(workspace: str | None) -> str:
    if not workspace:
        raise InputError("which workspace?", "add --workspace DIR or --workspace s3://bucket/prefix")
    return normalise_uri(workspace)


@app.command()
def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="folder for the workspace and the page")] = Path("vitpipe-demo"),
    seed: Annotated[int, typer.Option(min=0, help="of shuffling, weights and augmentation")] = 0,
    store: Annotated[str, typer.Option(help="local, or s3: a real S3 server on loopback, while it runs")] = "local",
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The whole chain on embedded images: 10,000 of Fashion-MNIST, judged on them and on handwritten digits."""
    from jobs.demo import demo as run_demo

    if store not in ("local", "s3"):
        raise InputError(f"--store {store}: there are local and s3")
    kind: Literal["local", "s3"] = "s3" if store == "s3" else "local"
    summary = run_demo(out.absolute(), seed, kind, overrides or [], make_progress(), address, debug)
    _show_summary(summary, as_json)


@app.command()
def shard(
    source: Annotated[
        str, typer.Argument(help="folder, parquet file or folder, s3:// prefix, embedded://NAME/SPLIT; or a recipe")
    ],
    overrides: Overrides = None,
    workspace: Workspace = None,
    name: Annotated[str | None, typer.Option(help="name of the dataset")] = None,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Shard a corpus into WebDataset tars, or all corpora of a recipe.

    `vitpipe shard photos/ --workspace ws --name photos seed=1 max_samples=5000`
    """
    from jobs.shard import as_result
    from jobs.shard import shard as run_shard

    if source.endswith((".yaml", ".yml")):
        chain = load_chain(source, overrides or [], _changes(workspace, endpoint))
        require(chain.shard, "shard", source)
    else:
        if not name:
            raise InputError("which name should the dataset have?", "add --name NAME")
        stage = build(ShardStage, apply_overrides({"source": source, "name": name}, overrides or []), "shard")
        chain = ChainRecipe(workspace=_needed(workspace), stores=_stores(workspace, endpoint), shard=(stage,))
    cards = run_shard(chain, make_progress(), address, debug)
    rows = [
        (c.name, f"{c.num_input:,}", f"{c.num_samples:,}", str(c.num_rejected), str(c.num_shards), c.digest[:16])
        for c in cards
    ]
    columns = ("dataset", "input", "written", "rejected", "shards", "digest")
    result = {"workspace": chain.workspace, "datasets": [as_result(card) for card in cards]}
    _finish(as_json, result, lambda: print_table(chain.workspace, columns, rows))


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="datasets; default: all of the workspace")] = None,
    workspace: Workspace = None,
    fast: Annotated[bool, typer.Option("--fast", help="cards, tables and sizes only")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="also decode every sample, and read with stock webdataset")
    ] = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare datasets with their cards: every byte by default. Names what is damaged, and exits 1."""
    from jobs.verify import verify as run_verify

    depth: Literal["fast", "bytes", "full"] = "full" if full else "fast" if fast else "bytes"
    uri, stores = _needed(workspace), _stores(workspace, endpoint)
    problems = run_verify(open_store(uri, stores), stores, names or [], depth, make_progress())
    found = [f"{name}: {problem}" for name, rows in problems.items() for problem in rows]
    result = {"workspace": uri, "depth": depth, "problems": problems}
    _finish(as_json, result, lambda: print_text("\n".join(found) or f"{len(problems)} datasets are whole ({depth})"))
    if found:
        raise FailedError(f"{len(found)} problems; first: {found[0]}", "shard the dataset again")


@app.command()
def pretrain(
    recipe: Recipe = "tiny",
    overrides: Overrides = None,
    workspace: Workspace = None,
    run_name: Annotated[str | None, typer.Option("--run", help="name of the run; wins over the recipe's")] = None,
    dataset: Annotated[str | None, typer.Option(help="name of the dataset; wins over the recipe's")] = None,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Pretrain the run of a recipe, or go on with it from its newest checkpoint."""
    from jobs.pretrain import pretrain as run_pretrain

    named = [f"pretrain.run={run_name}"] if run_name else []
    named += [f"pretrain.dataset={dataset}"] if dataset else []
    chain = load_chain(recipe, named + (overrides or []), _changes(workspace, endpoint))
    section = require(chain.pretrain, "pretrain", recipe)
    steps = run_pretrain(chain, section, make_progress(), address, debug)
    result = {"workspace": chain.workspace, "run": section.run, "checkpoints": steps}
    _finish(
        as_json, result, lambda: print_text(f"run {section.run}: checkpoints of steps {', '.join(map(str, steps))}")
    )


@app.command()
def evaluate(
    run_or_recipe: Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="a run, or a recipe with its suite")],
    overrides: Overrides = None,
    workspace: Workspace = None,
    train: Annotated[str | None, typer.Option(help="training dataset of the task, without a recipe")] = None,
    test: Annotated[str | None, typer.Option(help="test dataset of the task, without a recipe")] = None,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate every checkpoint of a run that is not evaluated yet.

    `vitpipe evaluate recipe.yaml`, or `vitpipe evaluate RUN -w ws --train birds-train --test birds-test`
    """
    from jobs.evaluate import default_suite
    from jobs.evaluate import evaluate as run_evaluate

    if train or test:
        if not (train and test):
            raise InputError("a task needs both --train and --test")
        chain = ChainRecipe(
            workspace=_needed(workspace), stores=_stores(workspace, endpoint), evaluate=default_suite(train, test)
        )
        run_name = run_or_recipe
    else:
        chain = load_chain(run_or_recipe, overrides or [], _changes(workspace, endpoint))
        run_name = require(chain.pretrain, "pretrain", run_or_recipe).run
    suite = require(chain.evaluate, "evaluate", run_or_recipe)
    done = run_evaluate(chain, run_name, suite, make_progress(), address, debug)
    result = {"run": run_name, "planned": done.num_planned, "done": done.num_done}
    text = f"run {run_name}: {done.num_done} evaluations done now, {done.num_planned} in all"
    _finish(as_json, result, lambda: print_text(text))


@app.command()
def report(
    run_or_recipe: Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="a run, or the recipe that names it")],
    workspace: Workspace = None,
    out: Annotated[Path | None, typer.Option(help="folder to copy page, scores and summary to")] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Render the page of a run: report.html, scores.parquet and summary.json."""
    from jobs.report import report as run_report

    if run_or_recipe.endswith((".yaml", ".yml")):
        chain = load_chain(run_or_recipe, [], _changes(workspace, endpoint))
        run_name = require(chain.pretrain, "pretrain", run_or_recipe).run
    else:
        chain = ChainRecipe(workspace=_needed(workspace), stores=_stores(workspace, endpoint))
        run_name = run_or_recipe
    _show_summary(run_report(chain, run_name, make_progress(), out), as_json)


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    workspace: Workspace = None,
    out: Annotated[Path | None, typer.Option(help="folder to copy page, scores and summary to")] = None,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The whole chain of a recipe: shard, pretrain, evaluate, report."""
    from jobs.run import run as run_chain

    chain = load_chain(recipe, overrides or [], _changes(workspace, endpoint))
    _show_summary(run_chain(chain, recipe, make_progress(), address, debug, out), as_json)


@app.command()
def submit(
    stage: Annotated[str, typer.Argument(help="run, shard, pretrain, evaluate or report")],
    recipe: Recipe,
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="dashboard of the cluster; default: RAY_API_SERVER_ADDRESS, else local")
    ] = None,
    workspace: Workspace = None,
    wait: Annotated[bool, typer.Option(help="follow the job's log to its end")] = True,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Send a stage, or the whole chain (`run`), to a cluster as a Ray job.

    `vitpipe submit run recipe.yaml --address http://127.0.0.1:8265`
    """
    from jobs.submit import STAGES
    from jobs.submit import submit as run_submit

    if stage not in STAGES:
        raise InputError(f"{stage!r} cannot be submitted", f"there are: {', '.join(STAGES)}")
    chain = load_chain(recipe, overrides or [], _changes(workspace, endpoint))
    where = address or os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    result = run_submit(stage, chain, where, wait, make_progress())
    _finish(as_json, result, lambda: print_text(f"{result['submission_id']}: {result['status']}"))


@app.command()
def status(
    workspace: Workspace = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What a workspace holds: datasets, runs and their checkpoints, evaluations, reports."""
    from jobs.status import describe
    from jobs.status import status as find_status

    found = find_status(open_store(_needed(workspace), _stores(workspace, endpoint)))

    def show() -> None:
        for title, columns, rows in describe(found):
            print_table(title, columns, rows)

    _finish(as_json, found, show)


@app.command()
def doctor(workspace: Workspace = None, endpoint: Endpoint = None, as_json: Json = False, debug: Debug = False) -> None:
    """Check this machine, and with --workspace whether it can be written."""
    from jobs.doctor import doctor as run_checks

    checks = run_checks(workspace, _stores(workspace, endpoint))
    result = {"checks": [{"what": what, "fine": fine, "detail": detail} for what, fine, detail in checks]}
    rows = [(what, "ok" if fine else "PROBLEM", detail) for what, fine, detail in checks]
    _finish(as_json, result, lambda: print_table(f"vitpipe {__version__}", ("check", "", "found"), rows))
    bad = [what for what, fine, _ in checks if not fine]
    if bad:
        raise RecipeError([f"not fit: {', '.join(bad)}"], "doctor")


def _show_summary(summary: dict[str, Any], as_json: bool) -> None:
    from jobs.report import print_scores

    def show() -> None:
        print_scores(summary)
        print_text(f"\nreport: {summary['report']}")

    _finish(as_json, summary, show)
