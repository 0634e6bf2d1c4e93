"""The command ``vitpipe``: a table of commands. A command's file is loaded when the command is run, not before.

Exit codes: 0 done; 1 failed during the work; 2 could be known before (usage, recipe, input); 3 interrupted, resumable.
"""

from __future__ import annotations

import importlib
from keyword import iskeyword
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from jobs.base import entrypoint

# name -> (file in jobs/, the first sentences of the command's help); in the order of `vitpipe --help`
COMMANDS = {
    "demo": (
        "demo",
        "The whole chain on embedded images: 10,000 of Fashion-MNIST, judged on them and on handwritten digits.",
    ),
    "stage": (
        "stage",
        "Copy a corpus into the workspace: verified, resumable, with a manifest."
        " Given again, it mends what is damaged.",
    ),
    "shard": (
        "shard",
        "Shard a corpus into WebDataset tars, or all corpora of a recipe. Given again, damaged shards are made anew.",
    ),
    "verify": (
        "verify",
        "Compare datasets and staged corpora with their cards: every byte by default. Names damage, and exits 1.",
    ),
    "plan": (
        "plan",
        "What the pretraining of a recipe will take: memory of a rank by ZeRO stage, FLOPs, time, batches,"
        " checkpoints.",
    ),
    "pretrain": ("pretrain", "Pretrain the run of a recipe, or go on with it from its newest checkpoint."),
    "evaluate": (
        "evaluate",
        "Evaluate every checkpoint of a run that is not evaluated yet, or weights from anywhere.",
    ),
    "evaluations": ("evaluations", "The evaluations of a run by name: list, redo, retry, cancel, invalidate."),
    "probe": ("probe", "Probe frozen features on one task: linear, k-NN and few-shot, or those that are named."),
    "transfer": ("transfer", "Fine-tune all weights on one task, as ViT's Table 4 does."),
    "scores": (
        "scores",
        "What was measured, with intervals; or with --compare, whether one checkpoint is better than another.",
    ),
    "gate": (
        "gate",
        "For CI: fail when B is worse than A. Every evaluation that A has is compared with the same one of B.",
    ),
    "report": ("report", "Render the page of a run: report.html, scores.parquet and summary.json."),
    "run": ("run", "The whole chain of a recipe: shard, pretrain, evaluate, report."),
    "export": ("export", "Write the weights of a checkpoint for others; they compute the same function."),
    "submit": ("submit", "Send a stage, or the whole chain (`run`), to a cluster as a Ray job."),
    "status": (
        "status",
        "What a workspace holds: datasets, runs and their checkpoints, imported weights, evaluations, reports.",
    ),
    "gc": ("gc", "Remove what killed work left in a workspace; never what a card names or somebody may read."),
    "doctor": ("doctor", "Check this machine, and with --workspace whether it can be written."),
    "import": (
        "import_weights",
        "Read a ViT of vision_transformer, big_vision, timm or transformers."
        " It can be evaluated and tuned without a run.",
    ),
    "dataset": ("dataset", "Look at a dataset: show, sample, dali-index."),
    "stream": ("stream", "The stream of a dataset into training: bench, audit."),
}


def load_command(name: str) -> Any:
    """The click command of *name*, from its file: the file's ``app``, or its function of that name."""
    module = importlib.import_module(f"jobs.{COMMANDS[name][0]}")
    target = getattr(module, "app", None) or getattr(module, f"{name}_" if iskeyword(name) else name)
    return typer.main.get_command(entrypoint.as_app(target))


class _LazyCommand(TyperCommand):
    """A row of the table. Its context is that of the real command, which is loaded for it."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the command itself."""
        return load_command(self.name or "").make_context(info_name, args, parent, **extra)


class _CommandTable(TyperGroup):
    """The commands of the table, in its order."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: _LazyCommand(name, help=line) for name, (_, line) in COMMANDS.items()}

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)


app = entrypoint.new_app(
    name="vitpipe",
    cls=_CommandTable,
    no_args_is_help=True,
    help="""From images in object storage to a pretrained Vision Transformer and a page of results.

The chain: **stage** a corpus, **shard** it into WebDataset tars, **pretrain** on them, **evaluate** every checkpoint,
**report**. **run** does it from one recipe; **demo** does it on embedded images in a few minutes.

Everything lives in a *workspace*, a folder or an s3://bucket/prefix; give a command again and it goes on where it
stopped.

Exit codes: 0 done · 1 failed during the work · 2 refused before it (usage, recipe, input) · 3 interrupted,
resumable.""",
)


@app.callback()
def _options() -> None:
    """Every option belongs to a command."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; *arguments* precede those of the process."""
    entrypoint.main(app, arguments)
