"""Build a report: collect, render, put. The page and the table first, the summary last."""

from __future__ import annotations

import json
from typing import Any

from pipeline.base.progress import Progress
from pipeline.base.store.protocol import Store
from pipeline.report.collect import collect
from pipeline.report.page import render_page
from pipeline.report.progressed import Progressed
from pipeline.report.scores import scores_parquet
from pipeline.report.summary import build_summary
from pipeline.report.tables import task_tables
from pipeline.report.verdict import verdicts

PAGE = "report.html"
TABLE = "scores.parquet"
SUMMARY = "summary.json"


def report_prefix(name: str) -> str:
    """Where report *name* stands in a workspace."""
    return f"reports/{name}"


def build_report(
    workspace: Store,
    run: str,
    *,
    name: str,
    code_version: str,
    progress: Progress,
    progressed: tuple[Progressed, ...] = (),
) -> dict[str, Any]:
    """Write ``reports/<name>/`` for *run* and return its summary. A report of that name is replaced.

    *progressed* tells how the last checkpoint stands against the one before it; who can compare outcomes makes it.
    Raises InputError when there is no such run, DamageError when something stored is not what its card says.
    """
    progress.start("report", 3)
    collected = collect(workspace, run)
    tables = task_tables(collected.joined)
    judged = verdicts(tables, collected.last_step)
    progress.advance(note="read")
    page = render_page(collected, tables, judged, progressed, name=name, code_version=code_version)
    progress.advance(note="rendered")
    prefix = report_prefix(name)
    workspace.delete(f"{prefix}/{SUMMARY}")  # an older report of that name stops existing before its parts change
    workspace.put(f"{prefix}/{PAGE}", page.encode())
    workspace.put(f"{prefix}/{TABLE}", scores_parquet(collected.scores))
    local = workspace.local_path(f"{prefix}/{PAGE}")
    where = str(local) if local is not None else f"{workspace.uri}/{prefix}/{PAGE}"
    summary = build_summary(collected, judged, progressed, code_version=code_version, page=where)
    workspace.put(f"{prefix}/{SUMMARY}", (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
    progress.advance(note="stored")
    progress.finish(where)
    return summary
