"""Scores as tables: the mean over seeds, one table per task, and how a cell stands against its baselines."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

from pipeline.base.digests import canonical_json, differing_fields
from pipeline.records.evaluators import EVALUATOR_NAMES, HEADLINES, INSPECT
from pipeline.records.score import EvaluationKey, Metric
from pipeline.report.formatting import RUNS_MEAN, RUNS_STD, interval, is_oracle, is_share, metric_name, number
from pipeline.report.scores import ScoredResult

Standing = Literal["clear", "above", "below", "alone"]


@dataclass(frozen=True)
class Cell:
    """One value of a table: the mean over seeds of value, low and high. ``values``: of each of ``seeds``.

    ``runs``: mean and standard deviation over the trainings of an evaluation that trains several times; None for
    others, and where there are several seeds.
    """

    metric: str
    value: float
    low: float
    high: float
    num_samples: int
    values: tuple[float, ...]
    seeds: tuple[int, ...] = ()
    runs: tuple[float, float] | None = None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds; None with one."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def text(self) -> str:
        """``84.2 % [82.5, 85.8]``."""
        return f"{number(self.metric, self.value)} {interval(self.metric, self.low, self.high)}"

    def overlaps(self, other: Cell) -> bool:
        """True when the two intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class ScoreRow:
    """One evaluator with one metric and one choice of settings on one task; ``imported``: weights of no run.

    ``label`` is ``variant``, which names evaluator and settings, and the metric where it is not the headline.
    """

    task: str
    evaluator: str
    metric: str
    variant: str
    label: str
    key: EvaluationKey
    pixels: Cell | None = None
    untrained: Cell | None = None
    imported: Cell | None = None
    steps: dict[int, Cell] = field(default_factory=dict)

    @property
    def is_headline(self) -> bool:
        """True for what the evaluation is judged by."""
        return self.metric in HEADLINES

    @property
    def baselines(self) -> tuple[Cell, ...]:
        """The baselines that are there."""
        return tuple(cell for cell in (self.pixels, self.untrained) if cell is not None)

    def standing(self, cell: Cell) -> Standing:
        """How a checkpoint's *cell* stands against every baseline of this row."""
        if not self.baselines or not is_share(self.metric) or is_oracle(self.metric):
            return "alone"
        if any(cell.value <= rival.value for rival in self.baselines):
            return "below"
        return "above" if any(cell.overlaps(rival) for rival in self.baselines) else "clear"


@dataclass(frozen=True)
class TaskTable:
    """All rows of one task."""

    task: str
    rows: tuple[ScoreRow, ...]

    @property
    def headline(self) -> tuple[ScoreRow, ...]:
        """One row for each choice of settings: what it is judged by."""
        return tuple(row for row in self.rows if row.is_headline)

    @property
    def further(self) -> tuple[ScoreRow, ...]:
        """All other metrics, those last that are no results."""
        rest = [row for row in self.rows if not row.is_headline]
        return tuple(sorted(rest, key=lambda row: is_oracle(row.metric)))


Variant = tuple[str, str, str]  # task, evaluator, all else but the seed and the weights: one row, unless by metric


def task_tables(joined: Iterable[ScoredResult]) -> tuple[TaskTable, ...]:
    """One table per task, its rows in a fixed order. Seeds are averaged only where all else is equal."""
    scored = [item for item in joined if item.result.key.evaluator != INSPECT]
    groups: dict[Variant, list[ScoredResult]] = {}
    for item in scored:
        if item.baseline != "pixels":
            groups.setdefault(_variant(item.result.key), []).append(item)
    pixels = [item for item in scored if item.baseline == "pixels"]
    rows = [row for variant in sorted(groups) for row in _rows(groups[variant], pixels, _label(variant, groups))]
    order = {name: place for place, name in enumerate(EVALUATOR_NAMES)}
    rows.sort(key=lambda row: (row.task, order.get(row.evaluator, len(order)), row.evaluator, row.variant))
    tasks = sorted({row.task for row in rows})
    return tuple(TaskTable(task, tuple(row for row in rows if row.task == task)) for task in tasks)


def _rows(own: list[ScoredResult], pixels: list[ScoredResult], label: str) -> Iterable[ScoreRow]:
    key = own[0].result.key
    rivals = _pixels_of(key, pixels)
    steps = sorted({item.step for item in own if item.step})
    for metric in dict.fromkeys(metric.name for item in own for metric in item.result.metrics):
        if metric.endswith((RUNS_MEAN, RUNS_STD)):
            continue  # told beside the value
        cells = {step: _cell(metric, [item for item in own if item.step == step]) for step in steps}
        yield ScoreRow(
            task=key.task,
            evaluator=key.evaluator,
            metric=metric,
            variant=label,
            label=label if metric in HEADLINES else f"{label} · {metric_name(metric)}",
            key=key,
            pixels=_cell(metric, rivals),
            untrained=_cell(metric, [item for item in own if item.step == 0]),
            imported=_cell(metric, [item for item in own if item.step is None]),
            steps={step: cell for step, cell in cells.items() if cell is not None},
        )


def _pixels_of(key: EvaluationKey, pixels: list[ScoredResult]) -> list[ScoredResult]:
    """The pixels results to hold against *key*: same data; same settings where there are such, else the strongest."""
    groups: dict[Variant, list[ScoredResult]] = {}
    for item in pixels:
        theirs = item.result.key
        if (theirs.evaluator, theirs.task, theirs.dataset_digests) == (key.evaluator, key.task, key.dataset_digests):
            groups.setdefault(_variant(theirs), []).append(item)
    same = {
        variant: items
        for variant, items in groups.items()
        if items[0].result.key.settings == key.settings and items[0].result.key.protocol_version == key.protocol_version
    }
    candidates = sorted((same or groups).items())
    return max((items for _, items in candidates), key=_strength, default=[])


def _strength(items: list[ScoredResult]) -> float:
    return fmean(item.result.metrics[0].value if item.result.metrics else 0.0 for item in items)


def _cell(metric: str, items: list[ScoredResult]) -> Cell | None:
    found: list[tuple[Metric, ScoredResult]] = [
        (measured, item) for item in items for measured in item.result.metrics if measured.name == metric
    ]
    if not found:
        return None
    found.sort(key=lambda pair: (pair[1].result.key.seed, pair[1].result.id))
    measured = [pair[0] for pair in found]
    return Cell(
        metric=metric,
        value=fmean(one.value for one in measured),
        low=fmean(one.low for one in measured),
        high=fmean(one.high for one in measured),
        num_samples=found[0][1].result.num_samples,
        values=tuple(one.value for one in measured),
        seeds=tuple(item.result.key.seed for _, item in found),
        runs=_over_runs(metric, found[0][1]) if len(found) == 1 else None,
    )


def _over_runs(metric: str, item: ScoredResult) -> tuple[float, float] | None:
    values = {measured.name: measured.value for measured in item.result.metrics}
    mean, deviation = values.get(metric + RUNS_MEAN), values.get(metric + RUNS_STD)
    return None if mean is None or deviation is None else (mean, deviation)


def _variant(key: EvaluationKey) -> Variant:
    return key.task, key.evaluator, canonical_json(_rest(key))


def _rest(key: EvaluationKey) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"weights_digest", "seed", "task", "evaluator"})


def _label(variant: Variant, groups: dict[Variant, list[ScoredResult]]) -> str:
    """The evaluator's name; where the task has it with several settings, also in what this one differs."""
    key = groups[variant][0].result.key
    shots = key.settings.get("shots") if key.evaluator == "fewshot" else None
    name = f"{shots}-shot" if shots is not None else EVALUATOR_NAMES.get(key.evaluator, key.evaluator)
    siblings = [_rest(items[0].result.key) for other, items in sorted(groups.items()) if other[:2] == variant[:2]]
    mine = _rest(key)
    fields = sorted({line.partition(":")[0] for other in siblings for line in differing_fields(mine, other)})
    shown = [f"{path.rpartition('.')[2]}={_value_at(mine, path)}" for path in fields if path != "settings.shots"]
    return f"{name} · {', '.join(shown)}" if shown else name


def _value_at(tree: Any, path: str) -> str:
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    if isinstance(tree, list):
        return "/".join(str(item)[:8] for item in tree)
    return str(tree)


SOURCE = "ViT paper"
# ImageNet-1k by the usual names: imagenet, imagenet-1k, imagenet1k, imagenet2012, ilsvrc2012, also with -val or -test.
# Not imagenet-21k, imagenet-v2, imagenet-a, imagenette, ...
_IMAGENET = re.compile(r"(imagenet|ilsvrc)[-_]?(1k|2012|ilsvrc2012)?([-_](val|validation|test))?", re.IGNORECASE)
# Everybody tests on its 50,000 validation images; a few may be rejected as damaged or double.
_IMAGENET_TEST = range(49_000, 50_001)


@dataclass(frozen=True)
class Published:
    """A top-1 share that a paper reports, by one of our evaluators. ``pretrained_on`` is empty where it is not told."""

    model: str
    pretrained_on: str
    evaluator: str
    value: float
    source: str

    @property
    def name(self) -> str:
        """``ViT-H/14 on JFT-300M``."""
        return f"{self.model} on {self.pretrained_on}" if self.pretrained_on else self.model


# arXiv 2010.11929 (ViT), Tables 2 and 5: fine-tuned at a higher resolution; the linear probe of iGPT-XL as cited there.
IMAGENET = (
    Published("ViT-H/14", "JFT-300M", "finetune", 0.8855, "Table 2"),
    Published("ViT-L/16", "JFT-300M", "finetune", 0.8776, "Table 2"),
    Published("BiT-L", "JFT-300M", "finetune", 0.8754, "Table 2"),
    Published("ViT-L/16", "ImageNet-21k", "finetune", 0.8530, "Table 2"),
    Published("ViT-B/16", "JFT-300M", "finetune", 0.8415, "Table 5"),
    Published("ViT-B/16", "ImageNet-21k", "finetune", 0.8397, "Table 5"),
    Published("ViT-B/16", "ImageNet-1k", "finetune", 0.7791, "Table 5"),
    Published("iGPT-XL", "", "linear", 0.720, "cited"),
)


def published_for(task: str, num_samples: Iterable[int]) -> tuple[Published, ...]:
    """The values for *task* if it is ImageNet-1k: by its name, and by how many test images there were."""
    counts = set(num_samples)
    is_same = _IMAGENET.fullmatch(task) is not None and bool(counts) and all(n in _IMAGENET_TEST for n in counts)
    return IMAGENET if is_same else ()


def published_of(table: TaskTable) -> tuple[Published, ...]:
    """The same for a table of scores."""
    cells = [cell for row in table.headline for cell in (*row.steps.values(), row.untrained, row.imported)]
    return published_for(table.task, (cell.num_samples for cell in cells if cell is not None))
