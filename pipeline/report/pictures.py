"""Pictures of the model, its test images and its confusion matrix: arrays -> PNG.

Gaps are transparent, so the page's own background shows through.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.report.collect import Samples
from pipeline.report.formatting import class_name
from pipeline.report.theme import Picture, data_uri

_MAX_FILTERS = 192  # tiles of the mosaic
MAX_GRID = 16  # tiles per side of the position picture; bigger grids show every second, third, ... position
_MAX_SAMPLES = 40  # test images with their predictions
MAX_NAMED = 20  # classes of a confusion matrix; above it the matrix is a picture
_NUM_WORST = 8  # pairs of classes that are confused most often
_FILTERS_WIDTH, _POSITIONS_WIDTH = 1036, 620  # CSS pixels that the mosaics may take
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class SampleCard:
    """One test image with the model's prediction and its probability."""

    picture: Picture
    truth: str
    prediction: str
    probability: float
    right: bool


@dataclass(frozen=True)
class PositionPicture:
    """The grid of grids with the values of its darkest and brightest colour."""

    picture: Picture
    low: float
    high: float
    stride: int
    grid: tuple[int, int]


def _png_picture(pixels: Bytes, alt: str) -> Picture:
    """(H, W, 3 or 4) uint8 as a PNG data URI."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, format="PNG")
    return Picture(data_uri("image/png", sink.getvalue()), alt, pixels.shape[1], pixels.shape[0])


def _enlarge(pixels: Bytes, scale: int, axis: int = 0) -> Bytes:
    """Every pixel drawn *scale* x *scale*; rows stand at *axis*, columns at the next."""
    return np.repeat(np.repeat(pixels, scale, axis=axis), scale, axis=axis + 1)


def mosaic(tiles: Bytes, columns: int, scale: int = 1, gap: int = 6) -> Bytes:
    """(K, h, w, 3) -> one RGBA picture, *columns* enlarged tiles wide, with transparent gaps of *gap* pixels."""
    tiles = _enlarge(tiles, scale, axis=1)
    num_tiles, height, width = tiles.shape[:3]
    rows = math.ceil(num_tiles / columns)
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = np.dstack([tile, np.full((height, width), 255, np.uint8)])
    return canvas


def filters_picture(filters: Floats) -> Picture:
    """(K, P, P, 3) -> a mosaic. Each tile is stretched over its own range, its three channels together."""
    shown = np.asarray(filters[:_MAX_FILTERS], dtype=np.float64)
    low = shown.min(axis=(1, 2, 3), keepdims=True)
    span = shown.max(axis=(1, 2, 3), keepdims=True) - low
    tiles = np.round(255 * (shown - low) / np.where(span > 0, span, 1)).astype(np.uint8)
    patch = shown.shape[1]
    columns = min(len(tiles), 24 if len(tiles) > 96 else 16 if len(tiles) > 28 else 14)
    scale = max(1, (_FILTERS_WIDTH // columns - 6) // patch)
    alt = f"The first {len(tiles)} patch filters, each {patch} by {patch} pixels, as colour tiles"
    return _png_picture(mosaic(tiles, columns, scale), alt)


def position_picture(similarity: Floats) -> PositionPicture:
    """(gh, gw, gh, gw) -> a grid of grids: tile (r, c) shows how alike position (r, c) is to each position."""
    gh, gw = similarity.shape[:2]
    stride = math.ceil(max(gh, gw) / MAX_GRID)
    itself = np.eye(gh * gw, dtype=bool).reshape(similarity.shape)
    others = similarity[~itself] if gh * gw > 1 else similarity.ravel()
    low, high = float(others.min()), float(others.max())
    shares = np.clip((similarity - low) / (high - low if high > low else 1.0), 0, 1)
    chosen = shares[::stride, ::stride]
    colours = mpl.colormaps["viridis"](chosen.reshape(-1, *similarity.shape[2:]), bytes=True)[..., :3]
    columns = chosen.shape[1]
    scale = max(1, (_POSITIONS_WIDTH // columns - 6) // gw)
    alt = f"Cosine similarity of the position embeddings, a {chosen.shape[0]} by {columns} grid of {gh} by {gw} maps"
    picture = _png_picture(mosaic(np.asarray(colours), columns, scale), alt)
    return PositionPicture(picture, low, high, stride, (gh, gw))


def sample_cards(samples: Samples, names: tuple[str, ...]) -> list[SampleCard]:
    """The first test images, each with truth, prediction and probability."""
    return [_sample_card(samples, names, index) for index in range(min(len(samples.images), _MAX_SAMPLES))]


def _sample_card(samples: Samples, names: tuple[str, ...], index: int) -> SampleCard:
    label, prediction = int(samples.labels[index]), int(samples.predictions[index])
    truth, predicted = class_name(names, label), class_name(names, prediction)
    right = label == prediction
    alt = f"Test image of {truth}, " + ("recognised" if right else f"taken for {predicted}")
    image = np.asarray(samples.images[index], dtype=np.uint8)
    return SampleCard(_png_picture(image, alt), truth, predicted, float(samples.probabilities[index]), right)


@dataclass(frozen=True)
class ConfusionCell:
    """How many images of the row's class were taken for the column's, and which share of the row that is."""

    count: int
    share: float
    hit: bool


@dataclass(frozen=True)
class Mistake:
    """A pair of classes that is often confused."""

    truth: str
    prediction: str
    count: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """Everything the page shows of a confusion matrix: ``rows`` for few classes, else ``picture``."""

    names: tuple[str, ...]
    num_samples: int
    rows: tuple[tuple[ConfusionCell, ...], ...]
    picture: Picture | None
    worst: tuple[Mistake, ...]


def confusion_view(counts: npt.NDArray[np.int64], class_names: tuple[str, ...]) -> Confusion:
    """(K, K) counts with rows as truth -> what is shown."""
    names = tuple(class_name(class_names, label) for label in range(len(counts)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(counts) <= MAX_NAMED
    rows = tuple(
        tuple(ConfusionCell(int(counts[r, c]), float(shares[r, c]), r == c) for c in range(len(counts)))
        for r in range(len(counts) if few else 0)
    )
    picture = None if few else _confusion_picture(counts)
    return Confusion(names, int(counts.sum()), rows, picture, _worst(counts, shares, names))


def _confusion_picture(confusion: npt.NDArray[np.int64]) -> Picture:
    """(K, K) counts, rows are the truth -> a heat map of row shares, for more classes than a table can name."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    colours = np.asarray(mpl.colormaps["magma"](np.sqrt(shares), bytes=True))[..., :3]
    num_classes = len(confusion)
    alt = f"Confusion of {num_classes} classes: truth down, prediction across, brighter is more"
    return _png_picture(_enlarge(colours, max(1, 700 // num_classes)), alt)


def _worst(
    counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], names: tuple[str, ...]
) -> tuple[Mistake, ...]:
    off = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    cells = np.argsort(-off, axis=None, kind="stable")[:_NUM_WORST]
    pairs = [divmod(int(cell), len(counts)) for cell in cells]
    return tuple(Mistake(names[r], names[c], int(counts[r, c]), float(shares[r, c])) for r, c in pairs if off[r, c] > 0)
