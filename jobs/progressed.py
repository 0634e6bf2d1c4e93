"""Is the last checkpoint of a run better than the one before? For its page, which may not compare by itself."""

from __future__ import annotations

from jobs.compared import Line, NotCompared, compare_all, lines_of
from pipeline.base.store import Store
from pipeline.evaluate.pairing import NOTHING_ALIKE, pair_results
from pipeline.records.run import CheckpointCard, list_checkpoint_cards, list_retired_cards
from pipeline.records.score import EvaluationKey, EvaluationResult, list_results
from pipeline.report.progressed import Progressed
from pipeline.report.scores import join_results
from pipeline.report.tables import Row, task_tables


def last_against_before(workspace: Store, run: str) -> tuple[Progressed, ...]:
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
    alone = [NotCompared(one.side, one.result, one.seeds, one.reason) for one in unpaired if one.side == "b"]
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


def _place(key: EvaluationKey, rows: list[Row]) -> int:
    """The row of the page's tables that *key* belongs to; -1: none."""
    return next((place for place, row in enumerate(rows) if _same(row.key, key)), -1)


def _label(key: EvaluationKey, rows: list[Row]) -> str:
    place = _place(key, rows)
    return rows[place].label if place >= 0 else key.evaluator


def _answered(line: Line, rows: list[Row], before: int, last: int) -> Progressed:
    one = line.comparison
    scale = 100 if one.in_points else 1
    return Progressed(
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


def _unknown(one: NotCompared, rows: list[Row], before: int, last: int) -> Progressed:
    what = f"step {before} has no result to compare" if one.side == "b" else "it cannot be compared"
    what += "" if one.reason == NOTHING_ALIKE else f" ({one.reason})"
    return Progressed(
        task=one.key.task,
        evaluator=one.key.evaluator,
        label=_label(one.key, rows),
        metric=one.result.metrics[0].name,
        step=last,
        before=before,
        sentence=f"Not known whether step {last} is better than step {before}: {what}.",
        seeds=one.seeds,
    )
