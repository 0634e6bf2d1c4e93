"""Mosaics, smoothing, and the confusion table as plain values."""

from __future__ import annotations

import math

import numpy as np

from pipeline.report.curves import smooth
from pipeline.report.pictures import MAX_GRID, MAX_NAMED, confusion_view, filters_picture, mosaic, position_picture


def test_mosaic_places_tiles_row_by_row_with_clear_gaps() -> None:
    tiles = np.zeros((3, 2, 2, 3), np.uint8)
    tiles[:, :, :, 0] = np.array([10, 20, 30])[:, None, None]
    picture = mosaic(tiles, columns=2, scale=1, gap=1)
    assert picture.shape == (5, 5, 4)
    assert [picture[0, 0, 0], picture[0, 3, 0], picture[3, 0, 0]] == [10, 20, 30]
    assert picture[:, 2, 3].max() == 0, "the gap between the columns is transparent"
    assert picture[3, 3, 3] == 0, "there is no fourth tile"


def test_filters_of_no_range_are_drawn_without_a_warning() -> None:
    picture = filters_picture(np.ones((5, 4, 4, 3), np.float32))
    assert "5 patch filters" in picture.alt


def test_position_colours_span_what_others_reach_not_the_self_similarity() -> None:
    grid = np.full((2, 2, 2, 2), 0.1, np.float32)
    grid[0, 0, 0, 1] = 0.4
    for row in range(2):
        for column in range(2):
            grid[row, column, row, column] = 1.0
    found = position_picture(grid)
    assert (round(found.low, 3), round(found.high, 3), found.stride) == (0.1, 0.4, 1)


def test_big_position_grids_are_thinned() -> None:
    side = MAX_GRID * 2
    found = position_picture(np.zeros((side, side, side, side), np.float32))
    assert found.stride == 2
    assert f"{MAX_GRID} by {MAX_GRID} grid" in found.picture.alt


def test_smoothing_is_a_mean_that_skips_what_is_not_finite() -> None:
    out = smooth(np.array([1.0, math.nan, 3.0, 5.0]), span=2)
    assert out.tolist() == [1.0, 2.0, 4.0, 4.0]
    assert np.isnan(smooth(np.array([math.nan, math.inf]), span=2)).all()


def test_confusion_names_its_worst_pairs() -> None:
    view = confusion_view(np.array([[8, 2, 0], [0, 9, 1], [0, 0, 0]]), ("cat", "dog"))
    assert view.names == ("cat", "dog", "class 2")
    assert [(one.truth, one.prediction, one.count) for one in view.worst] == [("cat", "dog", 2), ("dog", "class 2", 1)]
    assert view.worst[0].share == 0.2
    assert view.num_samples == 20


def test_many_classes_become_a_picture() -> None:
    view = confusion_view(np.eye(MAX_NAMED + 1, dtype=np.int64), ())
    assert view.picture is not None
    assert view.rows == ()
    assert view.worst == ()
