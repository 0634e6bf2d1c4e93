"""Scores as tables: the mean over seeds, one table per task, cells against their baselines, and published values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

from pipeline.base.digests import canonical_json, differing_fields
from pipeline.records.evaluators import EVALUATORS, evaluator_title, has_scores, is_headline, variant_name
from pipeline.records.score import RUNS_MEAN, RUNS_STD, EvaluationKey, Metric
from pipeline.report.formatting import interval, is_oracle, is_share, metric_name, number
from pipeline.report.scores import ScoredResult

SOURCE = "ViT paper"
# ImageNet-1k by the usual names: imagenet, imagenet-1k, imagenet1k, imagenet2012, ilsvrc2012, also with -val or -test.
# Not imagenet-21k, imagenet-v2, imagenet-a, imagenette, ...
_IMAGENET = re.compile(r"(imagenet|ilsvrc)[-_]?(1k|2012|ilsvrc2012)?([-_](val|validation|test))?", re.IGNORECASE)
# Everybody tests on its 50,000 validation images; a few may be rejected as damaged or double.
_IMAGENET_TEST = range(49_000, 50_001)
_Variant = tuple[str, str, str]  # task, evaluator, all else but the seed and the weights: one row, unless by metric
Margin = Literal["clear", "above", "below", "alone"]


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

    def overlaps(self, cell: Cell) -> bool:
        """True when the two intervals have a point in common."""
        return self.low <= cell.high and cell.low <= self.high


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
        return is_headline(self.evaluator, self.metric)

    @property
    def baselines(self) -> tuple[Cell, ...]:
        """The baselines that are there."""
        return tuple(cell for cell in (self.pixels, self.untrained) if cell is not None)

    def margin(self, cell: Cell) -> Margin:
        """A checkpoint's *cell* against the baselines of this row; "clear": above all, and no interval overlaps."""
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


def task_tables(joined: Iterable[ScoredResult]) -> tuple[TaskTable, ...]:
    """One table per task, its rows in a fixed order. Seeds are averaged only where all else is equal."""
    scored = [entry for entry in joined if has_scores(entry.result.key.evaluator)]
    groups: dict[_Variant, list[ScoredResult]] = {}
    for entry in scored:
        if entry.baseline != "pixels":
            groups.setdefault(_variant(entry.result.key), []).append(entry)
    pixels = [entry for entry in scored if entry.baseline == "pixels"]
    rows = [row for variant in sorted(groups) for row in _rows(groups[variant], pixels, _label(variant, groups))]
    order = {name: index for index, name in enumerate(EVALUATORS)}
    rows.sort(key=lambda row: (row.task, order.get(row.evaluator, len(order)), row.evaluator, row.variant))
    tasks = sorted({row.task for row in rows})
    return tuple(TaskTable(task, tuple(row for row in rows if row.task == task)) for task in tasks)


def _rows(own: list[ScoredResult], pixels: list[ScoredResult], label: str) -> Iterable[ScoreRow]:
    key = own[0].result.key
    rivals = _pixels_of(key, pixels)
    steps = sorted({entry.step for entry in own if entry.step})
    for metric in dict.fromkeys(metric.name for entry in own for metric in entry.result.metrics):
        if metric.endswith((RUNS_MEAN, RUNS_STD)):
            continue  # shown beside the value
        cells = {step: _cell(metric, [entry for entry in own if entry.step == step]) for step in steps}
        yield ScoreRow(
            task=key.task,
            evaluator=key.evaluator,
            metric=metric,
            variant=label,
            label=label if is_headline(key.evaluator, metric) else f"{label} · {metric_name(metric)}",
            key=key,
            pixels=_cell(metric, rivals),
            untrained=_cell(metric, [entry for entry in own if entry.step == 0]),
            imported=_cell(metric, [entry for entry in own if entry.step is None]),
            steps={step: cell for step, cell in cells.items() if cell is not None},
        )


def _pixels_of(key: EvaluationKey, pixels: list[ScoredResult]) -> list[ScoredResult]:
    """The pixels results to hold against *key*: same data; same settings where there are such, else the strongest."""
    groups: dict[_Variant, list[ScoredResult]] = {}
    for entry in pixels:
        if _is_same_task(entry.result.key, key):
            groups.setdefault(_variant(entry.result.key), []).append(entry)
    same = {
        variant: entries
        for variant, entries in groups.items()
        if entries[0].result.key.settings == key.settings
        and entries[0].result.key.protocol_version == key.protocol_version
    }
    candidates = sorted((same or groups).items())
    return max((entries for _, entries in candidates), key=_strength, default=[])


def _is_same_task(key: EvaluationKey, candidate: EvaluationKey) -> bool:
    names = ("evaluator", "task", "dataset_digests")
    return all(getattr(key, name) == getattr(candidate, name) for name in names)


def _strength(entries: list[ScoredResult]) -> float:
    return fmean(entry.result.metrics[0].value if entry.result.metrics else 0.0 for entry in entries)


def _cell(metric: str, entries: list[ScoredResult]) -> Cell | None:
    pairs: list[tuple[Metric, ScoredResult]] = [
        (measured, entry) for entry in entries for measured in entry.result.metrics if measured.name == metric
    ]
    if not pairs:
        return None
    pairs.sort(key=lambda pair: (pair[1].result.key.seed, pair[1].result.id))
    metrics = [pair[0] for pair in pairs]
    return Cell(
        metric=metric,
        value=fmean(value.value for value in metrics),
        low=fmean(value.low for value in metrics),
        high=fmean(value.high for value in metrics),
        num_samples=pairs[0][1].result.num_samples,
        values=tuple(value.value for value in metrics),
        seeds=tuple(entry.result.key.seed for _, entry in pairs),
        runs=_over_runs(metric, pairs[0][1]) if len(pairs) == 1 else None,
    )


def _over_runs(metric: str, entry: ScoredResult) -> tuple[float, float] | None:
    values = {measured.name: measured.value for measured in entry.result.metrics}
    mean, deviation = values.get(metric + RUNS_MEAN), values.get(metric + RUNS_STD)
    return None if mean is None or deviation is None else (mean, deviation)


def _variant(key: EvaluationKey) -> _Variant:
    return key.task, key.evaluator, canonical_json(_rest(key))


def _rest(key: EvaluationKey) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"weights_digest", "seed", "task", "evaluator"})


def _label(variant: _Variant, groups: dict[_Variant, list[ScoredResult]]) -> str:
    """The evaluator's name; where the task has it with several settings, also in what this one differs."""
    key = groups[variant][0].result.key
    name = variant_name(key.evaluator, key.settings) or evaluator_title(key.evaluator)
    siblings = [_rest(entries[0].result.key) for known, entries in sorted(groups.items()) if known[:2] == variant[:2]]
    own = _rest(key)
    fields = sorted({line.partition(":")[0] for candidate in siblings for line in differing_fields(own, candidate)})
    shown = [f"{path.rpartition('.')[2]}={_value_at(own, path)}" for path in fields if path != "settings.shots"]
    return f"{name} · {', '.join(shown)}" if shown else name


def _value_at(tree: Any, path: str) -> str:
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    if isinstance(tree, list):
        return "/".join(str(value)[:8] for value in tree)
    return str(tree)


@dataclass(frozen=True)
class Published:
    """A top-1 share that a paper reports, by one of our evaluators; ``pretrained_on``: "" where it names none."""

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
_PUBLISHED = (
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
    return _PUBLISHED if is_same else ()


def published_of(table: TaskTable) -> tuple[Published, ...]:
    """The same for a table of scores."""
    cells = [cell for row in table.headline for cell in (*row.steps.values(), row.untrained, row.imported)]
    return published_for(table.task, (cell.num_samples for cell in cells if cell is not None))
