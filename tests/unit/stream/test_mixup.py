"""Mixup: coefficients by (seed, step), partners inside the slot, the same at every allowed world size."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.base.world import World, allowed_world_sizes
from pipeline.stream.mixup import draw_coefficient, mixed, partners
from pipeline.stream.order import batch_positions


@pytest.mark.parametrize("a", [1e-4, 0.2, 0.5, 0.8, 1.0, 5.0])
def test_coefficients_lie_between_half_and_one_and_hang_on_seed_and_step(a: float) -> None:
    drawn = [draw_coefficient(a, 1, step) for step in range(500)]
    assert all(0.5 <= value <= 1.0 for value in drawn)
    assert drawn == [draw_coefficient(a, 1, step) for step in range(500)]
    if a >= 0.2:
        assert len(set(drawn)) > 450
        assert len({draw_coefficient(a, seed, 3) for seed in range(50)}) > 40


@pytest.mark.parametrize("a", [0.2, 0.5, 0.8, 1.0])
def test_coefficients_are_those_of_the_larger_part_of_a_beta(a: float) -> None:
    drawn = np.array([draw_coefficient(a, 7, step) for step in range(4000)])
    # E[(max(b, 1 - b) - 1/2)^2] is the variance of Beta(a, a), 1 / (4 (2 a + 1))
    assert np.mean((drawn - 0.5) ** 2) == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.05)


def test_without_mixup_all_is_the_samples_own() -> None:
    assert draw_coefficient(0.0, 1, 2) == 1.0


def test_the_golden_coefficients() -> None:
    """A run that resumes relies on them."""
    assert [round(draw_coefficient(0.2, 0, step), 9) for step in range(4)] == GOLDEN


GOLDEN = [0.999999968, 0.811387439, 0.979527822, 0.871651461]


@pytest.mark.parametrize(("rows", "slots"), [(1, 1), (1, 4), (2, 1), (2, 4), (5, 3), (512, 8)])
def test_partners_are_the_next_row_of_the_same_slot(rows: int, slots: int) -> None:
    found = partners(rows, slots)
    assert found.dtype == np.int64
    assert sorted(found.tolist()) == list(range(rows * slots))
    for at, partner in enumerate(found.tolist()):
        assert partner % slots == at % slots
        assert partner // slots == (at // slots + 1) % rows
        assert (partner != at) == (rows > 1)
    np.testing.assert_array_equal(found, np.roll(np.arange(rows * slots), -slots))


@pytest.mark.parametrize(("batch_size", "num_slots"), [(16, 8), (24, 6), (60, 12), (8, 4), (7, 7), (12, 1)])
@pytest.mark.parametrize("step", [0, 5])
def test_every_sample_has_the_same_partner_at_every_allowed_world_size(
    batch_size: int, num_slots: int, step: int
) -> None:
    found = []
    for size in allowed_world_sizes(num_slots):
        pairs = {}
        for rank in range(size):
            positions = batch_positions(step, batch_size, num_slots, World(rank, size))
            of_each = partners(batch_size // num_slots, num_slots // size)
            pairs |= dict(zip(positions.tolist(), positions[of_each].tolist(), strict=True))
        assert set(pairs) == set(range(step * batch_size, (step + 1) * batch_size))
        found.append(pairs)
    assert len(found) >= 2 or num_slots == 1
    assert all(pairs == found[0] for pairs in found)
    if batch_size > num_slots:
        assert all(one != other for one, other in found[0].items())


def test_mixed_is_the_weighted_sum() -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = torch.rand(4, 3, 5, 5, generator=draw), torch.rand(4, 3, 5, 5, generator=draw)
    wanted = 0.7 * one.double() + 0.3 * other.double()
    torch.testing.assert_close(mixed(one.clone(), other, 0.7).double(), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed(one.clone(), other, 1.0), one, rtol=0, atol=0)


def test_nothing_that_a_loader_process_needs_imports_torch() -> None:
    modules = "pipeline.stream.augment, pipeline.stream.mixup, pipeline.images.decode"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
