"""Paired comparisons: McNemar against SciPy, probabilities against simulation, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from pipeline.base.errors import InputError
from pipeline.evaluate.metrics import Outcomes, mean_per_class, of_label_scores, of_probabilities, of_scores, top1
from pipeline.evaluate.metrics.classification import mean_average_precision
from pipeline.evaluate.significance import can_compare, compare, compare_seeds, holm, mcnemar

COUNT = 500


def outcomes(share: float, seed: int, count: int = COUNT) -> Outcomes:
    """Right on about *share* of the samples."""
    draw = np.random.default_rng(seed)
    labels = np.random.default_rng(0).integers(0, 7, count)
    shares = draw.dirichlet(np.ones(7), count)
    rows = np.arange(count)
    wanted = np.where(draw.random(count) < share, labels, (labels + 1) % 7)
    best = shares.argmax(1)
    shares[rows, best], shares[rows, wanted] = shares[rows, wanted].copy(), shares[rows, best].copy()
    return of_probabilities(tuple(f"k{row}" for row in rows), labels, shares.astype(np.float32))


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 21), (200, 260)])
def test_mcnemar_equals_scipys_binomial_test(only_a: int, only_b: int) -> None:
    found = mcnemar(only_a, only_b)
    trials = only_a + only_b
    exact = binomtest(only_a, trials).pvalue if trials else 1.0
    assert found.exact == pytest.approx(exact, abs=1e-12)
    # mid-p by its definition: half the weight of what was seen, on both tails
    seen = binom.pmf(np.arange(trials + 1), trials, 0.5)
    far = seen[: min(only_a, only_b)].sum()
    middle = 1.0 if only_a == only_b else min(1.0, 2 * far + seen[min(only_a, only_b)])
    assert found.mid_p == pytest.approx(middle, abs=1e-12)
    assert mcnemar(only_b, only_a).mid_p == found.mid_p


def test_a_clear_difference_and_none() -> None:
    worse, better = outcomes(0.6, 1), outcomes(0.8, 2)
    found = compare(worse, better)
    assert (found.value_a, found.value_b) == (top1(worse).value, top1(better).value)
    assert found.difference == pytest.approx(found.value_b - found.value_a)
    assert 0 < found.low < found.difference < found.high
    assert found.probability > 0.999
    assert found.mcnemar is not None
    assert found.mcnemar.exact < 1e-4
    assert found.mcnemar.only_b - found.mcnemar.only_a == pytest.approx(found.difference * COUNT)
    back = compare(better, worse)
    assert back.probability < 0.001
    assert back.difference == -found.difference
    same = compare(worse, worse)
    assert (same.probability, same.difference, same.low, same.high) == (0.5, 0.0, 0.0, 0.0)
    assert same.mcnemar is not None
    assert same.mcnemar.mid_p == 1.0


def test_probability_is_near_the_normal_one() -> None:
    a, b = outcomes(0.70, 1, 4000), outcomes(0.71, 2, 4000)
    found = compare(a, b)
    change = (b.predictions == b.labels).astype(float) - (a.predictions == a.labels)
    expected = norm.cdf(change.mean() / (change.std() / np.sqrt(4000)))
    assert 0.02 < expected < 0.98
    assert found.probability == pytest.approx(expected, abs=0.01)
    assert compare(a, b) == found
    assert compare(a, b, seed=1) != found


@pytest.mark.parametrize("metric", ["top1", "top5", "nll"])
def test_samples_are_matched_by_key(metric: str) -> None:
    a, b = outcomes(0.6, 1), outcomes(0.8, 2)
    order = np.random.default_rng(3).permutation(COUNT)
    mixed = Outcomes(
        tuple(b.keys[row] for row in order),
        *(getattr(b, name)[order] for name in ("labels", "predictions", "probabilities")),
        *(getattr(b, name)[order] for name in ("ranks", "true_probabilities", "nll")),
    )
    assert compare(a, mixed, metric) == compare(a, b, metric)


def test_likelihoods_are_better_when_smaller() -> None:
    a, b = outcomes(0.6, 1), outcomes(0.9, 2)
    found = compare(a, b, "nll")
    assert found.difference == pytest.approx(b.nll.mean() - a.nll.mean(), abs=1e-5)
    assert found.high < 0
    assert found.probability > 0.99
    assert found.sentence("A", "B").endswith("samples.")


def test_mean_average_precision_is_compared_on_the_same_draws() -> None:
    draw = np.random.default_rng(1)
    targets = draw.random((300, 4)) < 0.3
    noise = draw.normal(size=targets.shape)
    keys = tuple(map(str, range(300)))
    weak = of_label_scores(keys, targets, targets + 1.5 * noise, calibrated=False)
    good = of_label_scores(keys, targets, targets + 1.3 * noise, calibrated=False)
    found = compare(weak, good, "mAP")
    assert found.value_b == pytest.approx(mean_average_precision(good.scores, targets))
    assert found.probability > 0.99, "paired: the noise is the same"
    with pytest.raises(InputError, match="samples have several labels"):
        compare(weak, good)


def test_seeds_are_averaged_before_samples_are_drawn() -> None:
    pairs = [(outcomes(0.70, 10 + seed, 2000), outcomes(0.715, 20 + seed, 2000)) for seed in range(3)]
    found = compare_seeds(pairs)
    right_a, right_b = (
        np.mean([one.predictions == one.labels for one in side], axis=0) for side in zip(*pairs, strict=True)
    )
    change = right_b - right_a
    assert (found.value_a, found.value_b) == (pytest.approx(right_a.mean()), pytest.approx(right_b.mean()))
    assert (found.num_seeds, found.num_samples, found.mcnemar) == (3, 2000, None)
    error = change.std() / np.sqrt(2000)
    assert found.p == pytest.approx(2 * norm.sf(abs(change.mean()) / error), rel=0.15)
    assert found.low == pytest.approx(change.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(change.mean() + 1.96 * error, abs=0.15 * error)
    assert found.high - found.low < compare(*pairs[0]).high - compare(*pairs[0]).low, "three seeds know more than one"
    assert "2,000 samples, mean over 3 seeds, p = " in found.sentence("a", "b")
    assert compare_seeds(pairs[:1]) == compare(*pairs[0])
    with pytest.raises(InputError, match="not all seeds have the same test samples"):
        compare_seeds([pairs[0], (outcomes(0.7, 1), outcomes(0.7, 2))])
    with pytest.raises(InputError, match="nothing was given"):
        compare_seeds([])


def test_the_mean_per_class_gives_every_class_the_same_weight() -> None:
    labels = np.array([0] * 900 + [1] * 100)
    keys = tuple(f"k{row:04d}" for row in range(1000))

    def of(right: np.ndarray) -> Outcomes:
        said = np.where(right, labels, 1 - labels)
        return of_probabilities(keys, labels, np.eye(2, dtype=np.float32)[said])

    rows = np.arange(1000)
    a, b = of((rows < 800) | (rows >= 950)), of((rows < 790) | (rows >= 930))
    found = compare(a, b, "mean_per_class")
    assert found.value_a == pytest.approx(mean_per_class(a).value)
    assert found.value_b == pytest.approx(mean_per_class(b).value)
    # class 0 loses 10 of 900, class 1 gains 20 of 100
    assert found.difference == pytest.approx((-10 / 900 + 20 / 100) / 2)
    error = np.sqrt((10 / 900 * (1 - 10 / 900) / 900 + 0.2 * 0.8 / 100) / 4)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found.drop == pytest.approx((-100 * found.difference, -100 * found.high, -100 * found.low))
    assert compare(a, b).difference == pytest.approx(0.01)


def test_holm() -> None:
    # in order of size: 4 * 0.005; 3 * 0.01; 2 * 0.03; 1 * 0.04, but no smaller than the one before
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_what_outcomes_tell() -> None:
    one = outcomes(0.6, 1)
    assert [can_compare(one, name) for name in ("top1", "top5", "mean_per_class", "nll", "mAP")] == [True] * 4 + [False]
    plain = of_scores(one.keys, one.labels, np.zeros((COUNT, 7)))
    assert [can_compare(plain, name) for name in ("top1", "nll")] == [True, False]


def test_the_sentence() -> None:
    a, b = outcomes(0.70, 1, 4000), outcomes(0.71, 2, 4000)
    found = compare(a, b)
    assert found.mcnemar is not None
    assert found.sentence("step 100", "step 200") == (
        f"step 200 is better than step 100 with probability {100 * found.probability:.1f} %: "
        f"top-1 {100 * found.value_a:.2f} % -> {100 * found.value_b:.2f} %, "
        f"difference {100 * found.difference:+.2f} points "
        f"(95 % interval {100 * found.low:+.2f} to {100 * found.high:+.2f}), 4,000 samples; "
        f"only step 200 is right on {found.mcnemar.only_b}, only step 100 on {found.mcnemar.only_a}, "
        f"McNemar p = {found.mcnemar.mid_p:.2g}."
    )
    assert "more than 99.9 %" in replace(found, probability=1.0).sentence("a", "b")
    assert "less than 0.1 %" in replace(found, probability=0.0).sentence("a", "b")


def test_what_cannot_be_compared_is_refused() -> None:
    a = outcomes(0.6, 1)
    with pytest.raises(InputError, match="500 and 400 test samples are not the same ones"):
        compare(a, outcomes(0.6, 1, 400))
    with pytest.raises(InputError, match="not the same ones"):
        compare(a, replace(a, keys=("other", *a.keys[1:])))
    with pytest.raises(InputError, match="other labels"):
        compare(a, replace(a, labels=(a.labels + 1) % 7))
    with pytest.raises(InputError, match="hold no ranks"):
        compare(a, replace(a, ranks=None), "top5")
    with pytest.raises(InputError, match="hold no probabilities"):
        compare(a, replace(a, nll=None), "nll")
    with pytest.raises(InputError, match="not of samples with several labels"):
        compare(a, a, "mAP")
