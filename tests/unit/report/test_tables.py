"""Metrics beside the headline, values that are no results, removed steps, published values, and progress."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.base.recipe import ChainRecipe
from jobs.report import run_report as report_job
from pipeline.base.progress import Silent
from pipeline.base.store import Store, open_store
from pipeline.evaluate.metrics import classification
from pipeline.records.run import RETIRED, checkpoint_card_key, step_prefix
from pipeline.records.score import Metric
from pipeline.report.collect import collect
from pipeline.report.formatting import ORACLE_PREFIX, is_share, metric_name, number
from pipeline.report.stage import build_report
from pipeline.report.tables import published_for, task_tables
from pipeline.report.verdicts import CheckpointComparison
from tests.support.evaluations import pattern, put_result
from tests.support.example_run import RUN, build_example, weights_digest
from tests.unit.report.conftest import report

MORE = (
    Metric(name="top5", value=0.987, low=0.98, high=0.99),
    Metric(name="mean_per_class", value=0.777, low=0.75, high=0.79),
    Metric(name="nll", value=0.45678, low=0.41, high=0.49),
    Metric(name="ece", value=0.0341, low=0.02, high=0.05),
    Metric(name="oracle_top1", value=0.9123, low=0.9, high=0.92),
)
TRAININGS = (
    Metric(name="top1_runs_mean", value=0.815, low=0.8, high=0.83),
    Metric(name="top1_runs_std", value=0.0042, low=0.0042, high=0.0042),
)


@pytest.fixture
def judged(tmp_path: Path) -> Store:
    """The example run with a linear probe of every metric at steps 200 and 300, and fine-tuning at 300 alone."""
    store = build_example(tmp_path, curves={}, artefacts=False)
    a, b = pattern(both=65, only_a=5, only_b=15, neither=15)
    for step, right in ((200, a), (300, b)):
        put_result(store, weights_digest(step), "linear", right, metrics=MORE)
    put_result(store, weights_digest(300), "finetune", b, metrics=TRAININGS)
    return store


def test_units() -> None:
    assert ORACLE_PREFIX == classification.ORACLE_PREFIX
    assert [number(name, 0.0341) for name in ("top1", "top5", "mean_per_class", "mAP")] == ["3.4 %"] * 4
    assert [number(name, 0.0341) for name in ("nll", "ece")] == ["0.0341"] * 2
    assert is_share("oracle_mAP")
    assert is_share("top1_runs_std")
    assert is_share("oracle_top1_l2_1e+06")
    assert not is_share("oracle_nll")
    assert metric_name("oracle_top1_l2_100") == "top-1 with l2 100, chosen on the test data: a bound, not a result"
    assert metric_name("oracle_top1") == "top-1, chosen on the test data: a bound, not a result"


def test_the_headline_table_holds_headlines_and_the_rest_is_folded(judged: Store) -> None:
    (table,) = task_tables(collect(judged, RUN).joined)
    assert [(row.evaluator, row.metric) for row in table.headline] == [("linear", "top1"), ("finetune", "top1")]
    assert [row.metric for row in table.further] == ["top5", "mean_per_class", "nll", "ece", "oracle_top1"]
    page = html.unescape(report(judged).page)
    first, folded = re.findall(r'<table class="scores(?: further)?">.*?</table>', page, re.DOTALL)
    assert page.index("<summary>Further metrics</summary>") > page.index(first)
    assert "80.0 %" in first
    for value in ("98.7 %", "77.7 %", "0.4568", "0.0341", "91.2 %"):
        assert value not in first
        assert value in folded
    (bound,) = (row for row in folded.split("<tr") if "91.2 %" in row)
    assert 'class="oracle"' in bound
    assert "chosen on the test data: a bound, not a result" in bound
    assert "mark" not in bound, "it beats nothing"


def test_trainings_of_one_evaluation_stand_beside_its_value(judged: Store) -> None:
    page = report(judged).page
    assert "all trainings: 81.5 % ± 0.4 %" in page
    assert "runs_mean" not in page


def test_the_summary_keeps_what_is_no_result_apart(judged: Store) -> None:
    summary = report(judged).summary
    assert "oracle_top1" not in {score["metric"] for score in summary["scores"]}
    assert {score["metric"] for score in summary["no_results"]["scores"]} == {"oracle_top1"}
    assert "not a result" in summary["no_results"]["what"]


def test_scores_of_removed_steps_are_still_shown(judged: Store) -> None:
    card = judged.read(checkpoint_card_key(RUN, 200))
    judged.put(f"{step_prefix(RUN, 200)}/{RETIRED}", card)
    judged.delete(checkpoint_card_key(RUN, 200))
    collected = collect(judged, RUN)
    assert collected.shown_steps == (100, 200, 300)
    assert 200 in {score.step for score in collected.scores}
    page = report(judged).page
    assert re.search(r"Step 200 <span[^>]*>\(removed\)", page)
    assert not re.search(r"Step 300 <span", page)
    assert page.count("70.0 %") == 1, "its value is still there"


@pytest.mark.parametrize(
    ("task", "count", "is_there"),
    [
        ("imagenet-1k", 50_000, True),
        ("imagenet", 49_998, True),
        ("ILSVRC2012-val", 50_000, True),
        ("imagenet1k_val", 50_000, True),
        ("imagenet-21k", 50_000, False),
        ("imagenet-v2", 50_000, False),
        ("imagenette", 50_000, False),
        ("my-imagenet", 50_000, False),
        ("imagenet", 10_000, False),
        ("digits", 50_000, False),
    ],
)
def test_published_values_stand_only_beside_the_same_data(task: str, count: int, is_there: bool) -> None:
    assert bool(published_for(task, [count])) is is_there
    assert published_for(task, []) == ()


def test_published_values_are_on_the_page(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves={}, artefacts=False)
    assert "ViT paper" not in report(store).page
    put_result(store, weights_digest(300), "linear", [True] * 30_000 + [False] * 20_000, task="imagenet-1k")
    page = report(store).page
    (row,) = (row for row in page.split("<tr") if "ViT paper: fine-tuning" in row)
    for part in ("ViT-H/14 on JFT-300M <b>88.55 %</b>", "ViT-B/16 on ImageNet-1k <b>77.91 %</b>"):
        assert part in row
    (row,) = (row for row in page.split("<tr") if "ViT paper: linear probe" in row)
    assert "iGPT-XL" in row
    assert "72.00 %" in row


def test_the_page_says_whether_the_last_checkpoint_is_better(judged: Store) -> None:
    root = judged.local_path("runs").parent  # type: ignore[union-attr]
    summary = report_job(ChainRecipe(workspace=root.as_uri()), RUN, Silent(), None)
    linear, tuned = summary["last_against_the_one_before"]
    assert (linear["evaluator"], linear["step"], linear["before"]) == ("linear", 300, 200)
    assert linear["difference"] == pytest.approx(10.0), "in points"
    assert linear["p"] == pytest.approx(0.0266, abs=1e-4)
    assert linear["probability"] > 0.97
    assert linear["answer"] == "yes"
    assert (tuned["evaluator"], tuned["answer"], tuned["probability"]) == ("finetune", "unknown", None)
    assert "step 200 has no result to compare." in tuned["sentence"]
    page = html.unescape(judged.read(f"reports/{RUN}/report.html").decode())
    section = page[page.index('<section id="progress">') : page.index('<section id="facts">')]
    assert linear["sentence"] in section
    assert "step 300 is better than step 200 with probability" in section
    assert "+10.00 [+" in section
    assert '<span class="badge">Better</span>' in section
    assert '<span class="badge">Not known</span>' in section


def test_one_checkpoint_is_compared_with_nothing(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves={}, artefacts=False, steps=(0, 300))
    put_result(store, weights_digest(300), "linear", [True] * 9)
    put_result(store, weights_digest(0), "linear", [False] * 9)
    summary = report_job(ChainRecipe(workspace=tmp_path.as_uri()), RUN, Silent(), None)
    assert summary["last_against_the_one_before"] == [], "the untrained network is a baseline, not a checkpoint before"
    assert (
        "Not recorded: that needs two checkpoints"
        in open_store(str(tmp_path)).read(f"reports/{RUN}/report.html").decode()
    )


def test_without_comparisons_the_page_says_so(judged: Store) -> None:
    summary = build_report(judged, RUN, name="plain", code_version="0", progress=Silent())
    assert summary["last_against_the_one_before"] == []
    assert "Not recorded: that needs two checkpoints" in judged.read("reports/plain/report.html").decode()


def test_better_is_said_only_after_adjusting() -> None:
    one = CheckpointComparison("t", "linear", "Linear probe", "top1", 2, 1, "", 0.99, 10.0, 2.0, 19.0, 0.11)
    assert (one.badge, one.odds, one.change) == ("Not clear", "99.0 %", "+10.00 [+2.00, +19.00]")
    assert replace(one, p=0.049).badge == "Better"
    assert replace(one, p=0.049, probability=0.01).badge == "Worse"
    assert replace(one, p=None, probability=None, difference=None).badge == "Not known"
    assert [replace(one, probability=share).odds for share in (0.9999, 0.0001)] == ["> 99.9 %", "< 0.1 %"]
    assert replace(one, in_points=False, difference=-0.01234).change.startswith("-0.0123 [")
