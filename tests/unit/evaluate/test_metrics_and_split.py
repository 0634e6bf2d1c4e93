"""Intervals against known values, and the validation part: stable, about as large as asked, never empty."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.base.errors import InputError
from pipeline.evaluate.metrics import Outcomes, top1, wilson
from pipeline.evaluate.split import validation_mask


# Newcombe, Statistics in Medicine 17 (1998), Table I, method 3: the score interval, to four digits.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_the_published_one(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5.1e-5)


@pytest.mark.parametrize("trials", [1, 10, 1000])
def test_wilson_interval_equals_scipys(trials: int) -> None:
    for successes in {0, trials // 3, trials // 2, trials}:
        expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_top1() -> None:
    labels = np.array([0, 1, 2, 1] * 10)
    predictions = np.where(np.arange(40) < 30, labels, 5)
    found = top1(Outcomes(tuple("abcd" * 10), labels, predictions, np.ones(40, np.float32)))
    assert (found.name, found.value) == ("top1", 0.75)
    assert (found.low, found.high) == wilson(30, 40)
    assert found.low < 0.75 < found.high


def keys(count: int, prefix: str = "k") -> tuple[str, ...]:
    """Keys of samples."""
    return tuple(f"{prefix}{number:05d}" for number in range(count))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_about_the_asked_share_is_held_out(share: float) -> None:
    mask = validation_mask(keys(20_000), share)
    assert mask.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 20_000))


def test_a_sample_stays_on_its_side_when_others_come_or_change_places() -> None:
    before = dict(zip(keys(500), validation_mask(keys(500), 0.2), strict=True))
    more = (*keys(300, "new"), *reversed(keys(500)))
    after = dict(zip(more, validation_mask(more, 0.2), strict=True))
    assert all(after[key] == before[key] for key in before)
    wider = dict(zip(keys(500), validation_mask(keys(500), 0.4), strict=True))
    assert all(wider[key] for key, held in before.items() if held)


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (3, 0.001), (3, 0.999), (0, 0.1)])
def test_an_empty_side_is_refused(count: int, share: float) -> None:
    with pytest.raises(InputError, match=f"{count} training samples are too few to hold out"):
        validation_mask(keys(count), share)
