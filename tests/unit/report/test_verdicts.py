"""The honest sentence, in every direction."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report.collect import collect
from pipeline.report.tables import task_tables
from pipeline.report.verdicts import BaselineVerdict, verdicts
from tests.support.example_run import DOWNSTREAM, RUN, build_example


def _verdict(root: Path, pixels: float | None, values: tuple[float, ...], steps=(0, 100, 200, 300)) -> BaselineVerdict:
    curves = {("linear", DOWNSTREAM): (pixels, values)}
    collected = collect(build_example(root, curves=curves, artefacts=False, steps=steps), RUN)
    (found,) = verdicts(task_tables(collected.joined), collected.last_step)
    return found


def test_beats_both_and_the_intervals_are_apart(tmp_path: Path) -> None:
    found = _verdict(tmp_path, 0.80, (0.70, 0.8, 0.9, 0.95))
    assert (found.answer, found.badge, found.overlapping) == ("yes", "Yes", ())
    assert "95.0 % [93.4, 96.2]" in found.sentence
    assert "above raw pixels at 80.0 %" in found.sentence
    assert "intervals overlap" not in found.sentence


def test_beats_both_but_the_intervals_overlap(tmp_path: Path) -> None:
    found = _verdict(tmp_path, 0.94, (0.70, 0.8, 0.9, 0.95))
    assert (found.answer, found.overlapping) == ("yes", ("raw pixels",))
    assert found.badge == "Yes, but intervals overlap"
    assert "(intervals overlap)" in found.sentence


@pytest.mark.parametrize(
    ("pixels", "untrained", "words"),
    [
        (0.97, 0.70, "below raw pixels at 97.0 %"),
        (0.80, 0.99, "below the untrained network at 99.0 %"),
        (0.95, 0.70, "equal to raw pixels at 95.0 %"),
    ],
)
def test_does_not_beat_both(tmp_path: Path, pixels: float, untrained: float, words: str) -> None:
    found = _verdict(tmp_path, pixels, (untrained, 0.8, 0.9, 0.95))
    assert (found.answer, found.badge) == ("no", "No")
    assert words in found.sentence


def test_an_earlier_better_step_does_not_count(tmp_path: Path) -> None:
    assert _verdict(tmp_path, 0.9, (0.7, 0.99, 0.99, 0.85)).answer == "no"


def test_without_pixels_it_is_not_known_but_a_lost_comparison_is(tmp_path: Path) -> None:
    found = _verdict(tmp_path / "won", None, (0.7, 0.8, 0.9, 0.95))
    assert (found.answer, found.badge) == ("unknown", "Not known")
    assert "nothing is recorded for raw pixels" in found.sentence
    assert _verdict(tmp_path / "lost", None, (0.99, 0.8, 0.9, 0.95)).answer == "no"


def test_a_last_checkpoint_without_a_score_is_not_known(tmp_path: Path) -> None:
    found = _verdict(tmp_path, 0.5, (0.7, 0.8, 0.9, 0.95), steps=(0, 100, 400))
    assert found.answer == "unknown"
    assert "step 400" in found.sentence


def test_nothing_trained_gives_no_verdict(built) -> None:
    assert verdicts(task_tables(collect(built.store, RUN).joined), None) == ()
