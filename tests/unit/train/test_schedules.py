"""The learning rate as a pure function of the step, at the places where its formula changes; batch arithmetic."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from pipeline.base.errors import RecipeError
from pipeline.train.recipe import ScheduleRecipe, accumulation
from pipeline.train.schedules import learning_rate

PEAK, END = 8e-4, 1e-5


def rates(decay: str, num_steps: int = 1100, warmup_steps: int = 100, end: float = END) -> list[float]:
    """The rate of every update."""
    recipe = ScheduleRecipe(decay=decay, warmup_steps=warmup_steps, end=end)
    return [learning_rate(step, num_steps, PEAK, recipe) for step in range(num_steps)]


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_warm_up_is_linear_and_ends_at_the_peak(decay: str) -> None:
    found = rates(decay)
    assert found[:100] == pytest.approx([PEAK * (step + 1) / 100 for step in range(100)])
    assert found[99] == PEAK
    assert found[100] == PEAK
    assert max(found) == PEAK


def test_cosine() -> None:
    found = rates("cosine")
    assert found[600] == pytest.approx((PEAK + END) / 2)
    assert found[350] == pytest.approx(END + (PEAK - END) * (1 + math.sqrt(0.5)) / 2)
    assert found[-1] == pytest.approx(END, abs=1e-8)
    assert found[-1] > END


def test_linear() -> None:
    found = rates("linear")
    assert found[600] == pytest.approx((PEAK + END) / 2)
    assert found[350] == pytest.approx(PEAK - (PEAK - END) / 4)
    assert found[-1] == pytest.approx(END + (PEAK - END) / 1000)


def test_constant() -> None:
    assert set(rates("constant")[99:]) == {PEAK}


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_after_warm_up_it_only_falls(decay: str) -> None:
    found = rates(decay)[100:]
    assert all(later < earlier for earlier, later in pairwise(found))


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_beyond_the_last_step_the_rate_stays_at_the_end(decay: str) -> None:
    recipe = ScheduleRecipe(decay=decay, warmup_steps=10, end=END)
    assert learning_rate(500, 100, PEAK, recipe) == pytest.approx(END)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rates("cosine", warmup_steps=0)[0] == PEAK


def test_warm_up_over_all_steps() -> None:
    found = rates("cosine", num_steps=50, warmup_steps=50)
    assert found == pytest.approx([PEAK * (step + 1) / 50 for step in range(50)])


@pytest.mark.parametrize(
    ("batch", "world", "micro", "expected"),
    [(64, 1, 0, (64, 1)), (64, 4, 0, (16, 1)), (64, 4, 4, (4, 4)), (64, 4, 16, (16, 1)), (6, 3, 1, (1, 2))],
)
def test_accumulation(batch: int, world: int, micro: int, expected: tuple[int, int]) -> None:
    found = accumulation(batch, world, micro)
    assert found == expected
    assert found[0] * found[1] * world == batch


@pytest.mark.parametrize(
    ("batch", "world", "micro", "said"),
    [
        (64, 3, 0, "batch_size 64 is not divisible by 3 workers"),
        (64, 4, 3, "micro_batch_size 3 does not divide the 16 samples that each of 4 ranks gets"),
        (64, 4, 32, "micro_batch_size 32 does not divide the 16 samples"),
    ],
)
def test_accumulation_that_does_not_come_out_even_is_refused(batch: int, world: int, micro: int, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        accumulation(batch, world, micro)
