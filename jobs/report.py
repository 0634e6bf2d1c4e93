"""``vitpipe report``: render the page of a run, and copy it where a person looks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.base.console import make_progress, print_table, print_text
from jobs.base.entrypoint import code_version, main
from jobs.base.options import Debug, Endpoint, Json, Workspace, changes, print_result, require_workspace, stores_of
from jobs.base.recipe import ChainRecipe, load_chain, require
from pipeline.base.errors import StoreAccessError
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store
from pipeline.evaluate.comparison import NOTHING_ALIKE, ComparisonRow, Incomparable, compare_all, lines_of, pair_results
from pipeline.records.evaluators import HEADLINES
from pipeline.records.run import CheckpointCard, list_checkpoint_cards, list_retired_cards, read_run_card
from pipeline.records.score import EvaluationKey, EvaluationResult, list_results
from pipeline.report.formatting import interval, number
from pipeline.report.scores import join_results
from pipeline.report.stage import build_report
from pipeline.report.tables import ScoreRow, task_tables
from pipeline.report.verdicts import CheckpointComparison


def latest_vs_previous(workspace: Store, run: str) -> tuple[CheckpointComparison, ...]:
    """One answer for each evaluation of the last checkpoint of *run*, by its headline metric, in the page's order.

    The one before is the newest trained step before it, also one that retention removed. Evaluations that only the last
    one has are told as not known. Empty where there are no two trained checkpoints, or no result of the last one.
    """
    kept = [card for card in list_checkpoint_cards(workspace, run) if card.step > 0]
    cards = sorted([*kept, *list_retired_cards(workspace, run)], key=lambda card: card.step)
    trained = [card for card in cards if 0 < card.step <= max((one.step for one in kept), default=0)]
    if len(trained) < 2:
        return ()
    before, last = trained[-2:]
    results = list_results(workspace)
    paired, unpaired = pair_results(_of(before, results), _of(last, results))
    done, failed = compare_all(workspace, paired, None)
    alone = [Incomparable(one.side, one.result, one.seeds, one.reason) for one in unpaired if one.side == "b"]
    rows = [row for table in task_tables(join_results(cards, results)) for row in table.headline]
    found = [_answered(line, rows, before.step, last.step) for line in lines_of(done)]
    compared = {_place(line.key, rows) for line in lines_of(done)}
    unknown = [one for one in [*failed, *alone] if _place(one.key, rows) not in compared]
    found += [_unknown(one, rows, before.step, last.step) for one in unknown]
    order = {(row.task, row.evaluator, row.label): place for place, row in enumerate(rows)}
    return tuple(sorted(found, key=lambda one: order.get((one.task, one.evaluator, one.label), len(order))))


def _of(card: CheckpointCard, results: list[EvaluationResult]) -> list[EvaluationResult]:
    return [result for result in results if result.key.weights_digest == card.weights.sha256]


def _same(key: EvaluationKey, other: EvaluationKey) -> bool:
    names = ("evaluator", "protocol_version", "dataset_digests", "settings")
    return all(getattr(key, name) == getattr(other, name) for name in names)


def _place(key: EvaluationKey, rows: list[ScoreRow]) -> int:
    """The row of the page's tables that *key* belongs to; -1: none."""
    return next((place for place, row in enumerate(rows) if _same(row.key, key)), -1)


def _label(key: EvaluationKey, rows: list[ScoreRow]) -> str:
    place = _place(key, rows)
    return rows[place].label if place >= 0 else key.evaluator


def _answered(line: ComparisonRow, rows: list[ScoreRow], before: int, last: int) -> CheckpointComparison:
    one = line.comparison
    scale = 100 if one.in_points else 1
    return CheckpointComparison(
        task=line.key.task,
        evaluator=line.key.evaluator,
        label=_label(line.key, rows),
        metric=one.metric,
        step=last,
        before=before,
        sentence=one.sentence(f"step {before}", f"step {last}"),
        probability=one.probability,
        difference=scale * one.difference,
        low=scale * one.low,
        high=scale * one.high,
        p=line.p_holm,
        in_points=one.in_points,
        num_samples=one.num_samples,
        seeds=line.seeds,
    )


def _unknown(one: Incomparable, rows: list[ScoreRow], before: int, last: int) -> CheckpointComparison:
    what = f"step {before} has no result to compare" if one.side == "b" else "it cannot be compared"
    what += "" if one.reason == NOTHING_ALIKE else f" ({one.reason})"
    return CheckpointComparison(
        task=one.key.task,
        evaluator=one.key.evaluator,
        label=_label(one.key, rows),
        metric=one.result.metrics[0].name,
        step=last,
        before=before,
        sentence=f"Not known whether step {last} is better than step {before}: {what}.",
        seeds=one.seeds,
    )


_FILES = ("report.html", "scores.parquet", "summary.json")


def run_report(chain: ChainRecipe, run: str, progress: Progress, out: Path | None) -> dict[str, Any]:
    """Render into the workspace; with *out*, copy page, scores and summary there, and let the summary name the copy."""
    workspace = open_store(chain.workspace, chain.stores)
    read_run_card(workspace, run)
    summary = build_report(
        workspace,
        run,
        name=run,
        code_version=code_version(),
        progress=progress,
        progressed=latest_vs_previous(workspace, run),
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


def show_summary(summary: dict[str, Any], as_json: bool) -> None:
    """Print the summary of a report, and where the page is."""

    def show() -> None:
        print_scores(summary)
        print_text(f"\nreport: {summary['report']}")

    print_result(as_json, summary, show)


def report(
    run_or_recipe: Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="a run, or the recipe that names it")],
    workspace: Workspace = None,
    out: Annotated[Path | None, typer.Option(help="folder to copy page, scores and summary to")] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Render the page of a run: report.html, scores.parquet and summary.json."""

    if run_or_recipe.endswith((".yaml", ".yml")):
        chain = load_chain(run_or_recipe, [], changes(workspace, endpoint))
        run_name = require(chain.pretrain, "pretrain", run_or_recipe).run
    else:
        chain = ChainRecipe(workspace=require_workspace(workspace), stores=stores_of(workspace, endpoint))
        run_name = run_or_recipe
    show_summary(run_report(chain, run_name, make_progress(), out), as_json)


if __name__ == "__main__":
    main(report)
