"""An evaluator is added as ``pipeline/evaluate/evaluators/README.md`` says: one file with ``run``, and three rows."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from pydantic import Field

from pipeline.base.config import build
from pipeline.base.errors import RecipeError
from pipeline.base.store import Store, open_store
from pipeline.evaluate import evaluators
from pipeline.evaluate.evaluators.probe import layer_specs, settings_of
from pipeline.evaluate.evaluators.registry import REGISTRY, Evaluator
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.plan import PlannedEvaluation, plan_evaluations
from pipeline.evaluate.recipe import SETTINGS, EvaluateRecipe, ProbeSettings, settings_summary
from pipeline.evaluate.task_data import open_task
from pipeline.evaluate.worker import feature_jobs, is_feature_job_done, run_evaluation, run_feature_job
from pipeline.records.dataset import read_dataset_card
from pipeline.records.evaluators import EVALUATORS, EvaluatorInfo, probe_names
from pipeline.report.query import ScoreQuery, find_scores
from tests.support.stored_models import put_network, put_pictures, tiny

FOLDER = Path(evaluators.__file__).parent
CLASSES = 3


class NearestMeanSettings(ProbeSettings):
    """Step 2: the settings."""

    SHOWN_ALWAYS: ClassVar[tuple[str, ...]] = ("power",)

    power: float = Field(2.0, gt=0, description="of the distance between a sample and the mean of a class")


def run(workspace: Store, planned: PlannedEvaluation) -> EvalOutput:
    """Step 1: the class whose mean is nearest."""
    settings: NearestMeanSettings = settings_of(planned)
    data = open_task(workspace, planned)
    (spec,) = layer_specs(planned)
    data.prepare([spec])
    train, test = data.train(spec), data.test(spec)
    means = np.stack([train.features[train.labels == label].mean(axis=0) for label in range(data.num_classes)])
    distances = (np.abs(test.features[:, None] - means) ** settings.power).sum(axis=2)
    outcomes = data.outcomes(test.keys, test.labels, -distances, calibrated=False)
    return EvalOutput(outcomes, data.num_classes, {"power": settings.power})


ROWS = ("settings", "registry", "records")


def add_rows(monkeypatch: pytest.MonkeyPatch, rows: tuple[str, ...] = ROWS) -> None:
    """Steps 2 to 4: the rows."""
    if "settings" in rows:
        monkeypatch.setitem(SETTINGS, "nearest_mean", NearestMeanSettings)
    if "registry" in rows:
        monkeypatch.setitem(REGISTRY, "nearest_mean", Evaluator(run, layer_specs))
    if "records" in rows:
        monkeypatch.setitem(EVALUATORS, "nearest_mean", EvaluatorInfo("Nearest mean", 1, is_probe=True))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Pictures whose brightness is their class."""
    store = open_store(str(tmp_path))
    for name, count, seed in (("train", 60, 1), ("test", 30, 2)):
        labels = np.arange(count) % CLASSES
        pixels = np.random.default_rng(seed).integers(0, 40, (count, 8, 8, 3)) + 80 * labels[:, None, None, None]
        put_pictures(store, name, pixels.astype(np.uint8), labels, CLASSES)
    return store


def evaluate(store: Store) -> PlannedEvaluation:
    """Plan, extract and evaluate one checkpoint, as the stage does it."""
    recipe = build(
        EvaluateRecipe,
        {
            "tasks": {"task": {"train": "train", "test": "test"}},
            "suite": [{"evaluator": "nearest_mean", "tasks": ["task"]}],
            "baselines": False,
        },
    )
    digests = {name: read_dataset_card(store, name).digest for name in ("train", "test")}
    (planned,) = plan_evaluations([put_network(store, tiny(CLASSES), seed=3)], recipe, digests)
    jobs = feature_jobs([planned])[planned.id]
    for job in jobs:
        run_feature_job(store, job)
    assert len(jobs) == 2
    assert all(is_feature_job_done(store, job) for job in jobs)
    assert run_evaluation(store, planned)
    return planned


def test_one_file_and_three_rows_are_an_evaluator(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add_rows(monkeypatch)
    planned = evaluate(store)
    assert planned.name == "nearest_mean on task of step 100"
    assert settings_summary(planned.key) == "power 2"
    (scores,) = find_scores(store, ScoreQuery())
    (row,) = [row for row in scores.rows if row.metric == "top1"]
    assert (row.evaluator, row.dataset, row.num_samples) == ("nearest_mean", "task", 30)
    assert row.value > 0.9
    (table,) = scores.tables
    (shown,) = table.headline
    assert shown.label == "Nearest mean"
    assert probe_names()[-1] == "nearest_mean"


@pytest.mark.parametrize("missing", ROWS)
def test_each_row_is_needed(store: Store, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    add_rows(monkeypatch, tuple(row for row in ROWS if row != missing))
    with pytest.raises((RecipeError, KeyError), match="evaluator" if missing == "settings" else "nearest_mean"):
        evaluate(store)


def test_an_unknown_evaluator_is_refused_by_the_names_that_there_are() -> None:
    tree = {"tasks": {"t": {"train": "a", "test": "b"}}, "suite": [{"evaluator": "nearest_mean", "tasks": ["t"]}]}
    with pytest.raises(RecipeError) as caught:
        build(EvaluateRecipe, tree)
    names = "'linear', 'sgd', 'knn', 'ridge', 'fewshot', 'finetune', 'classify' or 'inspect'"
    assert f"'suite.0.evaluator': Input should be {names} (got 'nearest_mean')" in str(caught.value)


def test_every_evaluator_has_its_three_rows() -> None:
    assert set(REGISTRY) == set(SETTINGS) == set(EVALUATORS)
    probes = {name for name, evaluator in REGISTRY.items() if evaluator.features is not Evaluator(run).features}
    assert probes == set(probe_names())
    files = {path.stem for path in FOLDER.glob("*.py") if "\ndef run(" in path.read_text(encoding="utf-8")}
    assert files == {evaluator.run.__module__.rpartition(".")[2] for evaluator in REGISTRY.values()}


def test_the_guide_is_short_and_names_what_to_edit() -> None:
    guide = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len([line for line in guide.splitlines() if line]) <= 10
    for name in ("pipeline/evaluate/recipe.py", "registry.py", "pipeline/records/evaluators.py"):
        assert name in guide
