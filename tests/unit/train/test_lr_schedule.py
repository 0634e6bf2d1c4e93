"""The learning rate as a pure function of the samples seen: big_vision's formula, bounds, joints, ends; batches."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.config import build
from pipeline.base.errors import RecipeError
from pipeline.train.lr_schedule import Schedule
from pipeline.train.recipe import ScheduleRecipe, accumulation

PEAK, END = 8e-4, 1e-5
BATCH = 8


def schedule(num_steps: int = 1100, batch_size: int = BATCH, **fields: Any) -> Schedule:
    """A schedule as a recipe gives it, with 100 steps of warm-up."""
    recipe = build(ScheduleRecipe, {"warmup_steps": 100} | fields)
    return Schedule.of(recipe, PEAK, num_steps, batch_size)


def rates(num_steps: int = 1100, **fields: Any) -> list[float]:
    """The rate of every update."""
    asked = schedule(num_steps, **fields)
    return [asked.rate(step * BATCH) for step in range(num_steps)]


def by_big_vision(step: int, num_steps: int, decay: str, fields: dict[str, Any]) -> float:
    """``create_learning_rate_schedule`` of big_vision's utils.py, as its text says it, with an ``end`` of 0."""
    warmup, cooldown = fields.get("warmup_steps", 100), fields.get("cooldown_steps", 0)
    progress = min(1.0, max(0.0, (step - warmup) / (num_steps - warmup)))
    rate = PEAK
    if decay == "linear":
        rate = PEAK * (1 - progress)
    elif decay == "cosine":
        rate = PEAK * 0.5 * (1 + math.cos(math.pi * progress))
    elif decay == "rsqrt" and step >= warmup:
        rate = PEAK / math.sqrt(1 + (step - warmup) / fields.get("timescale_steps", 10_000))
    if warmup:
        rate *= min(1.0, step / warmup)
    if cooldown:
        rate *= min(1.0, (num_steps - step) / cooldown)
    return rate


@pytest.mark.parametrize(
    ("decay", "fields"),
    [
        ("cosine", {}),
        ("linear", {}),
        ("linear", {"warmup_steps": 0}),
        ("constant", {"cooldown_steps": 300}),
        ("rsqrt", {}),
        ("rsqrt", {"timescale_steps": 50, "cooldown_steps": 200}),
        ("rsqrt", {"timescale_steps": 7, "cooldown_steps": 1050, "warmup_steps": 400}),  # the two overlap
    ],
)
def test_every_rate_is_that_of_big_vision(decay: str, fields: dict[str, Any]) -> None:
    expected = [by_big_vision(step, 1100, decay, fields) for step in range(1100)]
    assert rates(decay=decay, **fields) == pytest.approx(expected, rel=1e-12)


def test_numbers_worked_out_by_hand() -> None:
    assert [schedule(decay="linear", end=END).rate(step * BATCH) for step in (0, 50, 100, 600, 1100)] == pytest.approx(
        [0, PEAK / 2, PEAK, (PEAK + END) / 2, END]
    )
    assert schedule(decay="cosine", end=END).rate(350 * BATCH) == pytest.approx(
        END + (PEAK - END) * (1 + math.sqrt(0.5)) / 2
    )
    # arXiv 2106.04560: after three time scales half the peak is left; the cool-down halves it again when half done
    falling = schedule(decay="rsqrt", timescale_steps=300, cooldown_steps=200)
    assert falling.rate(0) == 0
    assert falling.rate(100 * BATCH) == PEAK
    assert schedule(decay="rsqrt", timescale_steps=300).rate(1000 * BATCH) == pytest.approx(PEAK / 2)
    assert falling.rate(1000 * BATCH) == pytest.approx(PEAK / 4)
    assert falling.rate(1100 * BATCH) == 0


schedules = st.builds(
    Schedule,
    decay=st.sampled_from(["cosine", "linear", "rsqrt", "constant"]),
    peak=st.floats(1e-6, 1.0),
    total=st.integers(1, 10**9),
    warmup=st.integers(0, 10**8),
    timescale=st.integers(1, 10**8),
    cooldown=st.integers(0, 10**8),
)


@given(schedules, st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_rates_stay_between_zero_and_the_peak(asked: Schedule, shares: list[float]) -> None:
    found = [asked.rate(int(share * asked.total)) for share in shares]
    assert all(0 <= rate <= asked.peak for rate in found)


@given(schedules, st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_rates_rise_in_the_warm_up_and_never_after_it(asked: Schedule, shares: list[float]) -> None:
    places = sorted(int(share * asked.total) for share in shares)
    for before, after in pairwise(places):
        if asked.warmup <= before:
            assert asked.rate(after) <= asked.rate(before) * (1 + 1e-12)
        elif after <= min(asked.warmup, asked.total - asked.cooldown):
            assert asked.rate(after) >= asked.rate(before) * (1 - 1e-12)


@given(schedules)
def test_there_is_no_jump_at_a_joint(asked: Schedule) -> None:
    """From one sample to the next the rate moves by no more than the steepest of its parts."""
    spans = [span for span in (asked.warmup, asked.cooldown) if span]
    spans += [asked.timescale] if asked.decay == "rsqrt" else []
    spans += [max(1, asked.total - asked.warmup)] if asked.decay in ("cosine", "linear") else []
    steepest = sum(asked.peak * math.pi / 2 / span for span in spans)
    for joint in (asked.warmup, asked.total - asked.cooldown, asked.total):
        for seen in (joint - 1, joint, joint + 1):
            if 0 <= seen < asked.total:
                assert abs(asked.rate(seen + 1) - asked.rate(seen)) <= steepest * (1 + 1e-9)


@given(schedules, st.floats(0, 1e-7))
def test_the_end_is_reached_when_all_is_seen_and_kept(asked: Schedule, end: float) -> None:
    ended = Schedule(asked.decay, asked.peak, asked.total, 0, asked.timescale, asked.cooldown, end)
    if asked.decay in ("cosine", "linear") or asked.cooldown:
        assert ended.rate(asked.total) == pytest.approx(end, abs=1e-15)
        assert ended.rate(2 * asked.total) == pytest.approx(end, abs=1e-15)


@pytest.mark.parametrize("decay", ["cosine", "linear", "rsqrt", "constant"])
def test_samples_say_the_same_as_steps_and_do_not_ask_for_the_batch(decay: str) -> None:
    cooled = {"cooldown_steps": 50} if decay in ("rsqrt", "constant") else {}
    spans = {"warmup_steps": 30, "timescale_steps": 20} | cooled
    in_samples = {name.replace("steps", "samples"): 64 * steps for name, steps in spans.items()}
    by_steps = schedule(200, 64, decay=decay, **spans)
    for batch_size in (1, 16, 64):
        recipe = build(ScheduleRecipe, {"decay": decay} | in_samples)
        assert Schedule.of(recipe, PEAK, 200 * 64 // batch_size, batch_size) == by_steps


def test_samples_take_the_place_of_the_default_and_survive_being_stored() -> None:
    recipe = build(ScheduleRecipe, {"warmup_samples": 1000})
    assert (recipe.warmup_steps, recipe.span("warmup", 64)) == (0, 1000)
    assert build(ScheduleRecipe, recipe.model_dump()) == recipe
    assert build(ScheduleRecipe, {}).span("warmup", 64) == 640_000


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"warmup_steps": 5, "warmup_samples": 5}, "give warmup_steps or warmup_samples, not both"),
        ({"cooldown_steps": 5}, "a cool-down is for rsqrt and constant; cosine comes to its end by itself"),
        ({"decay": "rsqrt", "timescale_steps": 0}, "rsqrt needs timescale_steps or timescale_samples"),
        ({"decay": "stair"}, "decay"),
        ({"warmup_sample": 5}, "did you mean 'warmup_samples'"),
        ({"end": -1}, "end"),
    ],
)
def test_schedules_that_contradict_themselves_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build(ScheduleRecipe, fields)


def test_warm_up_over_all_steps() -> None:
    assert rates(50, decay="cosine", warmup_steps=50) == pytest.approx([PEAK * step / 50 for step in range(50)])


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
