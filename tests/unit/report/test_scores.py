"""The join of results with checkpoints, the baselines, and scores.parquet."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pipeline.records.run import list_checkpoint_cards
from pipeline.records.score import PIXELS, Score, list_results
from pipeline.report.collect import collect
from pipeline.report.scores import join_results, score_rows, scores_parquet
from pipeline.report.tables import task_tables
from tests.support.example_run import (
    CURVES,
    DOWNSTREAM,
    NUM_TEST,
    RUN,
    build_example,
    put_result,
    weights_digest,
)

LINEAR = {("linear", DOWNSTREAM): (0.9, (0.8, 0.85, 0.9, 0.95))}
FEWSHOT = {("fewshot", DOWNSTREAM): (0.78, (0.6, 0.7, 0.8, 0.82))}


def _scores(store) -> tuple[Score, ...]:
    joined = join_results(list_checkpoint_cards(store, RUN), list_results(store))
    return score_rows(RUN, joined)


def test_every_result_gets_the_step_of_its_weights(tmp_path: Path) -> None:
    rows = _scores(build_example(tmp_path, curves=LINEAR, artefacts=False))
    found = [(row.step, row.baseline, row.value) for row in rows]
    assert found[:2] == [(None, "pixels", 0.9), (0, "untrained", 0.8)]
    assert found[2:] == [(100, None, 0.85), (200, None, 0.9), (300, None, 0.95)]
    assert all(row.run == RUN and row.num_samples == NUM_TEST[DOWNSTREAM] for row in rows)


def test_results_of_other_runs_and_pixels_on_other_data_are_left_out(tmp_path: Path) -> None:
    store = build_example(tmp_path, artefacts=False)
    left_out = {0.999, 0.998, 1.0}
    assert {result.metrics[0].value for result in list_results(store)} & left_out, "the example holds what to leave out"
    assert not {row.value for row in _scores(store)} & left_out


def test_pixels_of_an_evaluator_this_run_has_not_are_left_out(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves=LINEAR, artefacts=False)
    put_result(store, PIXELS, ("knn", DOWNSTREAM), 0.5)
    assert {row.evaluator for row in _scores(store)} == {"linear"}


def test_two_steps_of_equal_weights_both_get_the_score(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves=LINEAR, artefacts=False)
    cards = list_checkpoint_cards(store, RUN)
    twin = cards[-1].model_copy(update={"step": 400})
    joined = join_results([*cards, twin], list_results(store))
    assert [item.step for item in joined if item.result.key.weights_digest == weights_digest(300)] == [300, 400]


def test_seeds_are_averaged_in_the_table_and_all_kept_in_the_rows(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves=FEWSHOT, artefacts=False)
    collected = collect(store, RUN)
    at_end = [row for row in collected.scores if row.step == 300]
    assert [row.seed for row in at_end] == [0, 1, 2]
    ((row,),) = [table.rows for table in task_tables(collected.joined)]
    assert row.label == "10-shot"
    cell = row.steps[300]
    assert cell.value == pytest.approx(0.82)
    assert cell.low == pytest.approx(sum(one.low for one in at_end) / 3)
    assert len(cell.values) == 3


def test_other_settings_are_another_row_and_are_never_averaged(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves=LINEAR, artefacts=False)
    put_result(store, weights_digest(300), ("linear", DOWNSTREAM), 0.5, settings={"solver": "sgd"})
    (table,) = task_tables(collect(store, RUN).joined)
    assert sorted(row.steps[300].value for row in table.rows) == [0.5, 0.95]
    assert sorted(row.label for row in table.rows) == ["Linear probe · solver=None", "Linear probe · solver=sgd"]
    assert [row.pixels.value for row in table.rows if row.pixels] == [0.9, 0.9], "one pixels result for both"


def test_shots_are_told_apart_by_name_and_each_meets_its_own_pixels(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves=FEWSHOT, artefacts=False)
    put_result(store, weights_digest(300), ("fewshot", DOWNSTREAM), 0.5, settings={"shots": 5})
    put_result(store, PIXELS, ("fewshot", DOWNSTREAM), 0.4, settings={"shots": 5})
    (table,) = task_tables(collect(store, RUN).joined)
    found = {row.label: row.pixels.value for row in table.rows if row.pixels}
    assert found == {"10-shot": pytest.approx(0.78), "5-shot": pytest.approx(0.4)}


def test_standing_against_the_baselines(tmp_path: Path) -> None:
    (table,) = task_tables(collect(build_example(tmp_path, curves=LINEAR, artefacts=False), RUN).joined)
    (row,) = table.rows
    found = {step: row.margin(cell) for step, cell in row.steps.items()}
    assert found == {100: "below", 200: "below", 300: "clear"}, "equal to a baseline is not above it"


def test_parquet_holds_every_field_of_every_score(built) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(built.store.local_path("reports/first/scores.parquet"))
    assert list(frame.columns) == list(Score.model_fields)
    assert len(frame) == len(built.summary["scores"])
    num_seeds = {name: 3 if name[0] == "fewshot" else 1 for name in CURVES}
    expected = sum(num_seeds[name] * (4 + (pixels is not None)) for name, (pixels, _) in CURVES.items())
    assert len(frame) == expected
    assert frame.step.isna().sum() == (frame.baseline == "pixels").sum() > 0


def test_rows_tell_the_protocol_and_the_datasets(built) -> None:
    results = {result.id: result.key for result in list_results(built.store)}
    rows = _scores(built.store)
    assert rows
    for row in rows:
        key = results[row.evaluation_id]
        assert (row.protocol_version, row.train_digest, row.test_digest) == (key.protocol_version, *key.dataset_digests)


def test_parquet_of_no_scores_can_be_read() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(io.BytesIO(scores_parquet([])))
    assert len(frame) == 0
    assert list(frame.columns) == list(Score.model_fields)
