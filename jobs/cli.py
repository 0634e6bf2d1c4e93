"""The command ``vitpipe``. Each command is thin: parse, build, call, exit code.

Exit codes: 0 done; 1 failed during the work; 2 could be known before (usage, recipe, input); 3 interrupted, resumable.
"""

from __future__ import annotations

import signal
import sys

import typer

from jobs.commands import (
    cluster,
    data,
    dataset,
    evaluation,
    one_task,
    planning,
    results,
    stream,
    training,
    upkeep,
    weights,
)
from pipeline.base.errors import FailedError, InterruptedRunError, VitpipeError

app = typer.Typer(
    name="vitpipe",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""From images in object storage to a pretrained Vision Transformer and a page of results.

The chain: **stage** a corpus, **shard** it into WebDataset tars, **pretrain** on them, **evaluate** every checkpoint,
**report**. **run** does it from one recipe; **demo** does it on embedded images in a few minutes.

Everything lives in a *workspace*, a folder or an s3://bucket/prefix; give a command again and it goes on where it
stopped.

Exit codes: 0 done · 1 failed during the work · 2 refused before it (usage, recipe, input) · 3 interrupted,
resumable.""",
)

for command in (
    training.demo,
    data.stage,
    data.shard,
    data.verify,
    planning.plan,
    training.pretrain,
    evaluation.evaluate,
    one_task.probe,
    one_task.transfer,
    results.scores,
    results.gate,
    training.report,
    training.run,
    weights.export,
    cluster.submit,
    cluster.status,
    upkeep.gc,
    cluster.doctor,
):
    app.command()(command)
app.command("import")(weights.import_)
app.add_typer(dataset.app, name="dataset")
app.add_typer(stream.app, name="stream")


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
