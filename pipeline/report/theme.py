"""How figures look, and how one becomes an image of the page.

A figure is drawn once, in the light palette. In the SVG text each palette colour is then replaced by a CSS variable
that has a dark value too, so the same image follows the reader's colour scheme. The bytes depend on the data alone.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Light and dark values; no other colour is used in a figure.
PALETTE = {
    "ink": ("#1b2733", "#e6ebf1"),
    "muted": ("#66717f", "#9aa6b4"),
    "grid": ("#e4e8ed", "#2c3743"),
    "panel": ("#fffffe", "#18212b"),
    "series": ("#2f6bda", "#79a7ff"),
    "second": ("#0f8a72", "#4fd1b3"),
    "third": ("#8250c4", "#bb96f5"),
    "warm": ("#c2700c", "#f0ab52"),
}
INK, MUTED, GRID, PANEL, SERIES, SECOND, THIRD, WARM = (light for light, _ in PALETTE.values())
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "vitpipe",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": GRID,
    "axes.facecolor": PANEL,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "figure.facecolor": PANEL,
    "legend.frameon": True,
    "legend.facecolor": PANEL,
    "legend.edgecolor": PANEL,
    "legend.framealpha": 0.9,
    "legend.labelcolor": INK,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "text.parse_math": False,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Picture:
    """An image of the page: a data URI, its description for those who cannot see it, and its size in CSS pixels."""

    uri: str
    alt: str
    width: int
    height: int


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's own defaults plus ours, whatever matplotlibrc the user has; figures are drawn inside of it."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of *width* x *height* inches with its axes, row by row. Call inside style()."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def svg_picture(figure: Figure, alt: str) -> Picture:
    """*figure* as an SVG data URI that follows light and dark. Call inside style()."""
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    for name, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{name})")
    head, body = text.split("<defs>", 1)
    uri = data_uri("image/svg+xml", f"{head}{_variables()}<defs>{body}".encode())
    width, height = figure.get_size_inches()
    return Picture(uri, alt, round(width * 96), round(height * 96))


def data_uri(kind: str, data: bytes) -> str:
    """*data* as a base64 data URI of media type *kind*."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _variables() -> str:
    light = "".join(f"--{name}:{values[0]};" for name, values in PALETTE.items())
    dark = "".join(f"--{name}:{values[1]};" for name, values in PALETTE.items())
    return f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>\n"
