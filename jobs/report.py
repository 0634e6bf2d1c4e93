"""``vitpipe report``: render the page of a run, and copy it where a person looks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.base.console import make_progress
from jobs.base.entrypoint import code_version, main
from jobs.base.options import Debug, Endpoint, Json, Workspace, recipe_changes, workspace_recipe
from jobs.base.recipe import ChainRecipe, load_chain, require
from jobs.scores import print_summary
from pipeline.base.errors import StoreAccessError
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store
from pipeline.evaluate.comparison import (
    NO_COUNTERPART,
    ComparisonRow,
    Incomparable,
    adjusted_rows,
    compare_pairings,
    pair_results,
)
from pipeline.records.run import CheckpointCard, list_checkpoint_cards, list_retired_cards, read_run_card
from pipeline.records.score import EvaluationKey, EvaluationResult, list_results
from pipeline.report.scores import join_results
from pipeline.report.tables import ScoreRow, task_tables
from pipeline.report.verdicts import CheckpointComparison


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
        chain = load_chain(run_or_recipe, [], recipe_changes(workspace, endpoint))
        run_name = require(chain.pretrain, "pretrain", run_or_recipe).run
    else:
        chain = workspace_recipe(workspace, endpoint)
        run_name = run_or_recipe
    print_summary(run_report(chain, run_name, make_progress(), out), as_json)


def run_report(chain: ChainRecipe, run: str, progress: Progress, out: Path | None) -> dict[str, Any]:
    """Render into the workspace; with *out*, copy page, scores and summary there, and let the summary name the copy."""
    # Imported here: it loads matplotlib, which commands that only import this module (``run``) need not wait for.
    from pipeline.report import stage

    workspace = open_store(chain.workspace, chain.stores)
    read_run_card(workspace, run)
    summary = stage.build_report(
        workspace,
        run,
        name=run,
        code_version=code_version(),
        progress=progress,
        comparisons=_latest_vs_previous(workspace, run),
    )
    if out is None:
        return summary
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (stage.PAGE, stage.TABLE, stage.SUMMARY):
            workspace.fetch(f"{stage.report_prefix(run)}/{name}", out / name)
        summary = summary | {"report": str((out / stage.PAGE).absolute())}
        (out / stage.SUMMARY).write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise StoreAccessError(f"{out} cannot be written: {error.strerror}", "choose another --out") from None
    return summary


def _latest_vs_previous(workspace: Store, run: str) -> tuple[CheckpointComparison, ...]:
    """One comparison for each evaluation of the last checkpoint of *run*, by its headline metric, in the page's order.

    The previous one is the newest trained step before it, also one that retention removed. Evaluations that only the
    last one has are not known. Empty where there are no two trained checkpoints, or no result of the last one.
    """
    current = [card for card in list_checkpoint_cards(workspace, run) if card.step > 0]
    cards = sorted([*current, *list_retired_cards(workspace, run)], key=lambda card: card.step)
    newest = max((card.step for card in current), default=0)
    trained = [card for card in cards if 0 < card.step <= newest]
    if len(trained) < 2:
        return ()
    before, last = trained[-2:]
    results = list_results(workspace)
    paired, unpaired = pair_results(_results_of(before, results), _results_of(last, results))
    compared, failed = compare_pairings(workspace, paired, None)
    only_last = [Incomparable(row.side, row.result, row.seeds, row.reason) for row in unpaired if row.side == "b"]
    headlines = [row for table in task_tables(join_results(cards, results)) for row in table.headline]
    lines = adjusted_rows(compared)
    comparisons = [_known(line, headlines, before.step, last.step) for line in lines]
    covered = {_row_index(line.key, headlines) for line in lines}
    missing = [row for row in [*failed, *only_last] if _row_index(row.key, headlines) not in covered]
    comparisons += [_unknown(row, headlines, before.step, last.step) for row in missing]
    order = {(row.task, row.evaluator, row.label): index for index, row in enumerate(headlines)}
    return tuple(sorted(comparisons, key=lambda row: order.get((row.task, row.evaluator, row.label), len(order))))


def _results_of(card: CheckpointCard, results: list[EvaluationResult]) -> list[EvaluationResult]:
    return [result for result in results if result.key.weights_digest == card.weights.sha256]


def _known(line: ComparisonRow, headlines: list[ScoreRow], before: int, last: int) -> CheckpointComparison:
    comparison = line.comparison
    scale = 100 if comparison.in_points else 1
    return CheckpointComparison(
        task=line.key.task,
        evaluator=line.key.evaluator,
        label=_label(line.key, headlines),
        metric=comparison.metric,
        step=last,
        before=before,
        sentence=comparison.sentence(f"step {before}", f"step {last}"),
        probability=comparison.probability,
        difference=scale * comparison.difference,
        low=scale * comparison.low,
        high=scale * comparison.high,
        p=line.p_holm,
        in_points=comparison.in_points,
        num_samples=comparison.num_samples,
        seeds=line.seeds,
    )


def _unknown(row: Incomparable, headlines: list[ScoreRow], before: int, last: int) -> CheckpointComparison:
    reason = f"step {before} has no result to compare" if row.side == "b" else "it cannot be compared"
    reason += "" if row.reason == NO_COUNTERPART else f" ({row.reason})"
    return CheckpointComparison(
        task=row.key.task,
        evaluator=row.key.evaluator,
        label=_label(row.key, headlines),
        metric=row.result.metrics[0].name,
        step=last,
        before=before,
        sentence=f"Not known whether step {last} is better than step {before}: {reason}.",
        seeds=row.seeds,
    )


def _label(key: EvaluationKey, headlines: list[ScoreRow]) -> str:
    index = _row_index(key, headlines)
    return headlines[index].label if index >= 0 else key.evaluator


def _row_index(key: EvaluationKey, headlines: list[ScoreRow]) -> int:
    """The row of the page's tables that *key* belongs to; -1: none."""
    return next((index for index, row in enumerate(headlines) if _is_same_evaluation(row.key, key)), -1)


def _is_same_evaluation(key: EvaluationKey, candidate: EvaluationKey) -> bool:
    names = ("evaluator", "protocol_version", "dataset_digests", "settings")
    return all(getattr(key, name) == getattr(candidate, name) for name in names)


if __name__ == "__main__":
    main(report)
