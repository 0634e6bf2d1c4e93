"""What goes wrong most often when training: seen in the numbers of each step, reported once with the likely cause.

Warnings go to the log, to the driver's output and to the run's journal. Only a loss or a gradient that is not finite
ends a run, or costs it an update, as the recipe says (``on_nonfinite``).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.base.errors import DivergedError
from pipeline.train.torch_engine import StepResult

_LABEL_BATCHES = 10  # with one label only, in a row: of 32 samples of 10 classes, one such batch has chance 1e-31
_ZERO_STEPS = 3  # with a gradient of norm 0, in a row
_HIGH_STEPS = 500  # with a loss above that of guessing, in a row
_HIGH_FACTOR = 1.02  # an untrained network is at log(classes) exactly, and noise is on top of it
_SMOOTHED = 0.98  # decay of the moving average of the loss
_WAIT_SHARE, _WAIT_SECONDS = 0.5, 30.0  # of the time, for so long: too much waiting for data


def guessing_loss(objective: str, num_classes: int) -> float | None:
    """The loss of a network that always guesses: log(classes) of a softmax; None for what has no such number."""
    return math.log(num_classes) if objective == "softmax" and num_classes > 1 else None


class TrainDiagnostics:
    """Of a rank. *guessing*: see ``guessing_loss``. *on_message* gets each warning as a text.

    *max_skipped* updates may be left out because they were not finite; 0: the first one ends the run.
    """

    def __init__(
        self, on_message: Callable[[str], None], guessing: float | None, warmup_steps: int, max_skipped: int
    ) -> None:
        self._on_message, self._guessing = on_message, guessing
        self._warmup, self._max_skipped = warmup_steps, max_skipped
        self._reported: set[str] = set()
        self._same_labels = self._zero_norms = self._high_steps = 0
        self._waiting_seconds = 0.0
        self._label: Tensor | None = None
        self._smoothed: float | None = None
        self.skipped = 0

    def batch(self, labels: Tensor) -> None:
        """This rank's labels of a step: int64 (B,), -1 where they are not read; or float32 (B, K), of many classes."""
        if "labels" in self._reported or self._same_labels < 0:
            return
        first = labels[0]
        if not first.is_floating_point() and int(first) < 0:
            return
        if (self._label is not None and not torch.equal(first, self._label)) or bool((labels != first).any()):
            self._same_labels = -1  # they differ: never look again
            return
        self._label, self._same_labels = first, self._same_labels + 1
        if self._same_labels >= _LABEL_BATCHES:
            classes = _classes_in(first)
            self._report(
                "labels",
                f"all labels of the first {self._same_labels} batches are {classes}: the network will learn to say "
                f"{classes}. Likely cause: the dataset has one class, or its labels were lost when it was sharded "
                "(vitpipe dataset shows the classes)",
            )

    def step(self, number: int, result: StepResult) -> bool:
        """Whether update *number* counts. Raises DivergedError when it may not be left out. Equal on every rank."""
        if not math.isfinite(result.loss) or not math.isfinite(result.grad_norm):
            self._not_finite(number, result)
            return False
        self._look_at_norm(number, result.grad_norm)
        self._look_at_loss(number, result.loss)
        return True

    def waited(self, share: float, seconds: float) -> None:
        """Of the *seconds* since the last row, *share* went into waiting for data."""
        self._waiting_seconds = self._waiting_seconds + seconds if share > _WAIT_SHARE else 0.0
        if self._waiting_seconds >= _WAIT_SECONDS:
            self._report(
                "data",
                f"{share:.0%} of the time goes into waiting for data. Likely cause: too few loader processes "
                "(stream.workers), or a slow store; `vitpipe stream` measures where the time goes",
            )

    def _not_finite(self, number: int, result: StepResult) -> None:
        result_text = f"step {number}: loss {result.loss}, gradient norm {result.grad_norm}"
        cause = "lower optimizer.learning_rate, lengthen schedule.warmup_steps, or look for broken samples"
        self.skipped += 1
        if self.skipped > self._max_skipped:
            many = f" ({self.skipped} updates in this attempt; max_skipped is {self._max_skipped})"
            raise DivergedError(result_text + (many if self._max_skipped else ""), cause)
        self._on_message(
            f"{result_text}: the update is left out ({self.skipped} of at most {self._max_skipped}); {cause}"
        )

    def _look_at_norm(self, number: int, norm: float) -> None:
        self._zero_norms = self._zero_norms + 1 if norm == 0.0 else 0
        if self._zero_norms >= _ZERO_STEPS:
            self._report(
                "norm",
                f"step {number}: the gradient's norm has been 0 for {self._zero_norms} steps: nothing is learnt. "
                "Likely cause: images that are all alike, a dead activation, or a loss too small for the precision",
            )

    def _look_at_loss(self, number: int, loss: float) -> None:
        if self._guessing is None or number <= self._warmup:
            return
        before = loss if self._smoothed is None else self._smoothed
        self._smoothed = _SMOOTHED * before + (1 - _SMOOTHED) * loss
        self._high_steps = self._high_steps + 1 if self._smoothed > _HIGH_FACTOR * self._guessing else 0
        if self._high_steps >= _HIGH_STEPS:
            self._report(
                "loss",
                f"step {number}: the loss {self._smoothed:.3f} has been above that of guessing, {self._guessing:.3f}, "
                f"for {self._high_steps} steps. Likely cause: a learning rate that is too high, or labels that do not "
                "belong to the images",
            )

    def _report(self, kind: str, text: str) -> None:
        if kind not in self._reported:
            self._reported.add(kind)
            self._on_message(text)


def _classes_in(label: Tensor) -> str:
    """The class of one sample, or its classes, as text."""
    if not label.is_floating_point():
        return str(int(label))
    return ", ".join(str(int(at)) for at in label.nonzero()) or "none"
