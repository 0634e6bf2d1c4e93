"""What is told to users, and that it is told once, with a cause; what ends a run and what is left out."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.base.errors import DivergedError
from pipeline.train.diagnostics import TrainDiagnostics, guessing_loss
from pipeline.train.torch_engine import StepResult

GUESSING = math.log(10)


def checked(warmup: int = 5, max_skipped: int = 0) -> tuple[TrainDiagnostics, list[str]]:
    """The checks of a run over ten classes, and what they say."""
    said: list[str] = []
    return TrainDiagnostics(said.append, GUESSING, warmup, max_skipped), said


def test_guessing() -> None:
    assert guessing_loss("softmax", 10) == GUESSING
    assert guessing_loss("softmax", 1) is None
    assert guessing_loss("sigmoid", 10) is None
    assert guessing_loss("masked_patches", 0) is None


def test_a_good_run_is_told_nothing() -> None:
    sanity, said = checked()
    for number in range(1, 2000):
        sanity.batch(torch.tensor([number % 10, 1]))
        assert sanity.step(number, StepResult(GUESSING * 1.01, 0.5))
        sanity.waited(0.5, 10.0)
    assert said == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_ends_the_run(value: float) -> None:
    for result in (StepResult(value, 1.0), StepResult(1.0, value)):
        sanity, said = checked()
        with pytest.raises(DivergedError, match=r"step 7: .*optimizer.learning_rate"):
            sanity.step(7, result)
        assert said == []


def test_what_is_not_finite_is_left_out_so_often() -> None:
    sanity, said = checked(max_skipped=2)
    assert not sanity.step(1, StepResult(float("nan"), 1.0))
    assert sanity.step(2, StepResult(1.0, 1.0))
    assert not sanity.step(3, StepResult(1.0, float("inf")))
    with pytest.raises(DivergedError, match="max_skipped is 2"):
        sanity.step(4, StepResult(float("nan"), 1.0))
    assert [line.split(":")[0] for line in said] == ["step 1", "step 3"]
    assert sanity.skipped == 3


def test_a_gradient_of_zero_is_told_once() -> None:
    sanity, said = checked()
    for number, norm in enumerate([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1):
        sanity.step(number, StepResult(1.0, norm))
    assert len(said) == 1
    assert said[0].startswith("step 6: the gradient's norm has been 0 for 3 steps")


def test_a_loss_above_that_of_guessing_is_told_once_it_lasts() -> None:
    sanity, said = checked(warmup=100)
    for number in range(1, 600):
        sanity.step(number, StepResult(2 * GUESSING, 1.0))
    assert said == []
    for number in range(600, 1300):
        sanity.step(number, StepResult(2 * GUESSING, 1.0))
    assert len(said) == 1
    assert said[0].startswith("step 600: the loss 4.605 has been above that of guessing, 2.303, for 500 steps")


def test_a_short_peak_of_the_loss_is_not_told() -> None:
    sanity, said = checked()
    for number in range(1, 3000):
        sanity.step(number, StepResult(GUESSING * (3 if number % 400 < 20 else 0.9), 1.0))
    assert said == []


def test_labels_that_are_all_equal_are_told_once() -> None:
    sanity, said = checked()
    for _ in range(30):
        sanity.batch(torch.full((8,), 3))
    assert len(said) == 1
    assert "all labels of the first 10 batches are 3" in said[0]


@pytest.mark.parametrize(
    "last", [torch.tensor([3, 4]), torch.tensor([4, 4])], ids=["inside a batch", "between batches"]
)
def test_labels_that_differ_once_are_never_looked_at_again(last: torch.Tensor) -> None:
    sanity, said = checked()
    for _ in range(9):
        sanity.batch(torch.full((2,), 3))
    sanity.batch(last)
    for _ in range(20):
        sanity.batch(torch.full((2,), 3))
    assert said == []


def test_labels_that_are_not_read_are_not_told() -> None:
    sanity, said = checked()
    for _ in range(20):
        sanity.batch(torch.full((2,), -1))
    assert said == []


@pytest.mark.parametrize(("classes", "told"), [([1, 3], "1, 3"), ([], "none")])
def test_labels_of_many_classes_that_are_all_equal_are_told(classes: list[int], told: str) -> None:
    sanity, said = checked()
    labels = torch.zeros(8, 5)
    labels[:, classes] = 1.0
    for _ in range(30):
        sanity.batch(labels)
    assert len(said) == 1
    assert f"all labels of the first 10 batches are {told}: " in said[0]


def test_labels_of_many_classes_that_differ_are_not_told() -> None:
    sanity, said = checked()
    for number in range(30):
        sanity.batch(torch.nn.functional.one_hot(torch.tensor([0, 0, number == 9]), 5).float())
    assert said == []


def test_waiting_for_data_is_told_once_it_lasts() -> None:
    sanity, said = checked()
    for share in (0.9, 0.9, 0.4, 0.9, 0.9):
        sanity.waited(share, 10.0)
    assert said == []
    for _ in range(5):
        sanity.waited(0.63, 10.0)
    assert len(said) == 1
    assert said[0].startswith("63% of the time goes into waiting for data")
