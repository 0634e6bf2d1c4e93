"""What is measured while training: rates, waiting for data, finite losses; logged to the run's journal."""

from __future__ import annotations

import math
import time

from pipeline.base.errors import DivergedError
from pipeline.base.journal import Journal
from pipeline.records.run import MetricsRow
from pipeline.train.single import StepResult

_FLUSH_SECONDS = 2.0


class Watch:
    """Counts since the last logged row; writes a row every *log_every* steps. Without a journal it only checks."""

    def __init__(self, journal: Journal | None, log_every: int, batch_size: int) -> None:
        self._journal, self._log_every, self._batch_size = journal, log_every, batch_size
        self._since = self._flushed = time.monotonic()
        self._steps = 0
        self._waited_seconds = 0.0

    def waited(self, seconds: float) -> None:
        """*seconds* passed between asking for a batch and having it."""
        self._waited_seconds += seconds

    def step(self, number: int, result: StepResult, learning_rate: float) -> None:
        """Update *number* (1 is the first) is done. Raises DivergedError when it is not finite, on every rank alike."""
        self._steps += 1
        if not math.isfinite(result.loss) or not math.isfinite(result.grad_norm):
            raise DivergedError(
                f"step {number}: loss {result.loss}, gradient norm {result.grad_norm}",
                "lower optimizer.learning_rate, lengthen schedule.warmup_steps, or look for broken samples",
            )
        if self._journal is None or number % self._log_every:
            return
        now = time.monotonic()
        seconds = now - self._since
        row = MetricsRow(
            step=number,
            position=number * self._batch_size,
            loss=result.loss.hex(),
            learning_rate=learning_rate,
            grad_norm=result.grad_norm.hex(),
            images_per_second=self._steps * self._batch_size / seconds if seconds else 0.0,
            data_wait_share=min(1.0, self._waited_seconds / seconds) if seconds else 0.0,
            seconds=seconds,
        )
        self._journal.append(row.model_dump())
        self._since, self._steps, self._waited_seconds = now, 0, 0.0
        if now - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was logged; called before every checkpoint's card, so a card implies its metrics."""
        if self._journal is not None:
            self._journal.flush()
        self._flushed = time.monotonic()

    def resume_clock(self) -> None:
        """Leave the time since the last row out of the rates: it went into a checkpoint."""
        self._since, self._steps, self._waited_seconds = time.monotonic(), 0, 0.0
