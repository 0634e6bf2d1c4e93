"""``vitpipe report``: render the page of a run, and copy it where a person looks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.code_version import code_version
from jobs.console import print_table, print_text
from jobs.progressed import last_against_before
from jobs.recipe import ChainRecipe
from pipeline.base.errors import StoreAccessError
from pipeline.base.progress import Progress
from pipeline.base.store import open_store
from pipeline.records.run import read_run_card
from pipeline.report.build import build_report
from pipeline.report.words import HEADLINES, interval, number

_FILES = ("report.html", "scores.parquet", "summary.json")


def report(chain: ChainRecipe, run: str, progress: Progress, out: Path | None) -> dict[str, Any]:
    """Render into the workspace; with *out*, copy page, scores and summary there, and let the summary name the copy."""
    workspace = open_store(chain.workspace, chain.stores)
    read_run_card(workspace, run)
    summary = build_report(
        workspace,
        run,
        name=run,
        code_version=code_version(),
        progress=progress,
        progressed=last_against_before(workspace, run),
    )
    if out is None:
        return summary
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            workspace.fetch(f"reports/{run}/{name}", out / name)
        summary = summary | {"report": str((out / "report.html").absolute())}
        (out / "summary.json").write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise StoreAccessError(f"{out} cannot be written: {error.strerror}", "choose another --out") from None
    return summary


def print_scores(summary: dict[str, Any]) -> None:
    """The scores as a table on stdout: one row per evaluator, task and subject, by what each is judged by.

    Then, for each evaluation, whether the last checkpoint is better than the one before.
    """
    rows = [
        (
            score["dataset"],
            score["evaluator"],
            score["baseline"] or f"step {score['step']}",
            score["metric"],
            number(score["metric"], score["value"]),
            interval(score["metric"], score["low"], score["high"]),
            str(score["num_samples"]),
            str(score["seed"]),
        )
        for score in sorted(summary["scores"], key=_reading_order)
        if score["metric"] in HEADLINES
    ]
    columns = ("task", "evaluator", "of", "metric", "value", "95 % interval", "n", "seed")
    print_table("Scores", columns, rows)
    for one in summary["last_against_the_one_before"]:
        print_text(f"{one['task']}, {one['label']}: {one['sentence']}")


def _reading_order(score: dict[str, Any]) -> tuple[Any, ...]:
    baseline = {"pixels": 0, "untrained": 1}.get(score["baseline"], 2)
    return score["dataset"], score["evaluator"], baseline, score["step"] or 0, score["seed"]


if __name__ == "__main__":
    from jobs.cli import main

    main(["report"])
