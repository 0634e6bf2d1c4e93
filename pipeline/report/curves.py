"""Curves: loss, learning rate and images/s against the step; scores against the step, one panel per evaluator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.report.collect import Training
from pipeline.report.formatting import is_share, number
from pipeline.report.tables import Cell, ScoreRow, TaskTable
from pipeline.report.theme import MUTED, SECOND, SERIES, THIRD, WARM, Picture, panels, style, svg_picture

_MAX_POINTS = 2000  # of a curve, more than a screen has; longer histories are thinned evenly for drawing only
_MIN_SMOOTHED = 8  # rows; fewer are drawn as points, without a mean
_PANELS_PER_ROW = 4
Floats = npt.NDArray[np.float64]


def smooth(values: Floats, span: int) -> Floats:
    """The mean over *span* values around each, fewer at both ends; values that are not finite are passed over."""
    finite = np.isfinite(values)
    totals = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    indexes = np.arange(len(values))
    low, high = np.maximum(indexes - span // 2, 0), np.minimum(indexes + span // 2 + 1, len(values))
    num_finite = counts[high] - counts[low]
    return np.where(num_finite > 0, (totals[high] - totals[low]) / np.maximum(num_finite, 1), np.nan)


def loss_picture(training: Training, checkpoint_steps: Sequence[int]) -> Picture | None:
    """Training loss, raw and smoothed, with resumes and checkpoints marked; None when nothing was logged."""
    steps, losses = _steps(training), np.array([float.fromhex(row.loss) for row in training.rows])
    if not len(steps):
        return None
    with style():
        figure, (axes,) = panels(1, 1, 10.6, 3.5)
        few = len(steps) < _MIN_SMOOTHED
        span = max(2, len(steps) // 20)
        shown = _finite(losses)
        axes.plot(
            *_thin(steps, shown),
            color=SERIES,
            alpha=1 if few else 0.32,
            lw=1,
            marker="o" if few else "",
            ms=3.5,
            label="each logged step",
        )
        if not few:
            axes.plot(
                *_thin(steps, smooth(losses, span)), color=SERIES, lw=2.2, label=f"mean over {2 * (span // 2) + 1} rows"
            )
        _mark(axes, training, checkpoint_steps)
        _step_axis(axes)
        axes.set_ylabel("training loss")
        axes.legend(loc="upper right", ncols=4)
        alt = f"Training loss from {losses[0]:.3f} at step {int(steps[0])} to {losses[-1]:.3f} at step {int(steps[-1])}"
        return svg_picture(figure, alt)


def learning_rate_picture(training: Training) -> Picture | None:
    """The learning rate at each logged step."""
    rates = np.array([row.learning_rate for row in training.rows])
    return _small(training, rates, "learning rate", SECOND, smoothed=False)


def throughput_picture(training: Training) -> Picture | None:
    """Images per second at each logged step, with their median."""
    rates = np.array([row.images_per_second for row in training.rows])
    return _small(training, rates, "images per second", THIRD, smoothed=True)


def _small(training: Training, values: Floats, label: str, color: str, *, smoothed: bool) -> Picture | None:
    steps = _steps(training)
    if not len(steps):
        return None
    with style():
        figure, (axes,) = panels(1, 1, 5.2, 2.6)
        axes.plot(*_thin(steps, _finite(values)), color=color, lw=1.8, marker="o" if len(steps) < _MIN_SMOOTHED else "")
        alt = f"{label.capitalize()} against the step, between {np.nanmin(values):.3g} and {np.nanmax(values):.3g}"
        if smoothed:
            middle = float(np.median(values))
            axes.axhline(middle, color=MUTED, lw=1, ls=(0, (4, 3)), label=f"median {middle:,.0f}")
            axes.legend(loc="lower right")
            alt += f", median {middle:.3g}"
        axes.set_ylim(bottom=0)
        _step_axis(axes)
        axes.set_title(label)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return svg_picture(figure, alt)


def scores_picture(table: TaskTable) -> Picture | None:
    """Scores of one task against the step, one panel per evaluator, with interval bands and baselines."""
    rows = [row for row in table.headline if row.steps and is_share(row.metric)]
    if not rows:
        return None
    columns = min(len(rows), _PANELS_PER_ROW)
    lines = math.ceil(len(rows) / columns)
    with style():
        width = {1: 5.6, 2: 8.2}.get(columns, 10.6)
        figure, axes = panels(lines, columns, width, 0.5 + 2.65 * lines)
        for row, panel in zip(rows, axes, strict=False):
            _score_panel(panel, row)
        for panel in axes[len(rows) :]:
            panel.set_visible(False)
        figure.legend(handles=_legend(rows), loc="outside upper left", ncols=4)
        return svg_picture(figure, _describe(table.task, rows))


def _score_panel(axes: Axes, row: ScoreRow) -> None:
    for cell, color, dashes in ((row.pixels, WARM, (0, (5, 3))), (row.untrained, MUTED, (0, (1, 2)))):
        if cell is not None:
            axes.axhspan(100 * cell.low, 100 * cell.high, color=color, alpha=0.13, lw=0)
            axes.axhline(100 * cell.value, color=color, lw=1.5, ls=dashes)
    points: dict[int, Cell] = dict(sorted(row.steps.items()))
    if row.untrained is not None:
        points = {0: row.untrained, **points}
    steps = list(points)
    axes.fill_between(
        steps,
        [100 * cell.low for cell in points.values()],
        [100 * cell.high for cell in points.values()],
        color=SERIES,
        alpha=0.2,
        lw=0,
    )
    axes.plot(steps, [100 * cell.value for cell in points.values()], color=SERIES, lw=2, marker="o", ms=4)
    axes.set_title(row.label)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    _step_axis(axes)


def _legend(rows: Sequence[ScoreRow]) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [Line2D([], [], color=SERIES, lw=2, marker="o", ms=4, label="checkpoints")]
    if any(row.pixels for row in rows):
        handles.append(Line2D([], [], color=WARM, lw=1.5, ls=(0, (5, 3)), label="raw pixels"))
    if any(row.untrained for row in rows):
        handles.append(Line2D([], [], color=MUTED, lw=1.5, ls=(0, (1, 2)), label="untrained network"))
    return [*handles, Patch(color=SERIES, alpha=0.2, lw=0, label="95 % interval")]


def _describe(task: str, rows: Sequence[ScoreRow]) -> str:
    ends = [f"{row.label} {number(row.metric, row.steps[max(row.steps)].value)}" for row in rows]
    return f"Scores on {task} against the step; at the newest step: {', '.join(ends)}"


def _mark(axes: Axes, training: Training, checkpoint_steps: Sequence[int]) -> None:
    for index, step in enumerate(training.resumed_at):
        axes.axvline(step, color=WARM, lw=1.2, ls=(0, (4, 3)), label="" if index else "resumed by a new attempt")
    if checkpoint_steps:
        base = axes.get_xaxis_transform()
        axes.plot(
            checkpoint_steps,
            [0.0] * len(checkpoint_steps),
            ls="",
            marker="^",
            ms=6,
            color=MUTED,
            transform=base,
            clip_on=False,
            zorder=5,
            label="checkpoint",
        )


def _step_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("step")


def _steps(training: Training) -> Floats:
    return np.array([row.step for row in training.rows], dtype=np.float64)


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def _thin(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    stride = -(-len(steps) // _MAX_POINTS)
    return steps[::stride], values[::stride]
