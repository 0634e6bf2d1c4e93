"""What is measured while training: loss, rates, waiting for data, memory, how far the ranks are apart.

Rows go to the run's journal, and as TensorBoard's event files into the workspace. These are written in parts, since a
store cannot append::

    runs/<name>/tensorboard/0001/events.out.tfevents.<time>.<host>.<process>...   several for each attempt

TensorBoard reads them with ``--reload_multifile true`` while a run goes on, and without once it is over.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.base.journal import Journal
from pipeline.base.retry import BestEffortWriter
from pipeline.base.store.protocol import Store
from pipeline.records.run import MetricsRow
from pipeline.train.diagnostics import TrainDiagnostics
from pipeline.train.torch_engine import StepResult

_log = logging.getLogger(__name__)

NUM_EXCHANGED = 4  # numbers of a StepTimer that the ranks exchange at each step
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_FIRST_FLUSH_SECONDS, _LAST_FLUSH_SECONDS = 2.0, 60.0  # between parts of the journal, which a store keeps one by one
_FLUSH_SHARE = 0.02  # of the time so far: an attempt of a month leaves some 40,000 parts, not a million
_EVENTS_SECONDS = 60.0  # at first: TensorBoard reads every part again and again
_TAGS = ("learning_rate", "images_per_second", "mfu", "data_wait_share", "rank_skew", "resident_bytes")


@dataclass(frozen=True)
class ModelFlops:
    """What an image costs to train on, and the FLOP/s that all ranks together could reach; 0: not known."""

    flops_per_image: float = 0.0
    peak_flops: float = 0.0


class MetricsLogger:
    """Counts since the last logged row; writes a row every *log_every* steps. Without a journal it only checks.

    Rows that the store refuses are kept, and written with the next ones.
    """

    def __init__(  # noqa: PLR0913 - where rows go, and what is in them
        self,
        journal: Journal | None,
        log_every: int,
        batch_size: int,
        *,
        diagnostics: TrainDiagnostics | None = None,
        step_timer: StepTimer | None = None,
        events: TensorBoardWriter | None = None,
        model_flops: ModelFlops | None = None,
        best_effort: BestEffortWriter | None = None,
    ) -> None:
        self._journal, self._log_every, self._batch_size = journal, log_every, batch_size
        self._diagnostics = diagnostics or TrainDiagnostics(_log.warning, None, 0, 0)
        self._step_timer, self._events, self._model_flops = step_timer, events, model_flops or ModelFlops()
        self._best_effort = best_effort or BestEffortWriter(_log.warning)
        self._started = self._since = self._flushed = self._events_flushed = time.monotonic()
        self._steps = 0
        self._waited_seconds = 0.0

    def waited(self, seconds: float) -> None:
        """*seconds* passed between asking for a batch and having it."""
        self._waited_seconds += seconds

    def step(self, number: int, result: StepResult, learning_rate: float) -> None:
        """Update *number* (1 is the first) is done. Raises DivergedError, on every rank alike."""
        self._steps += 1
        self._diagnostics.step(number, result)
        if number % self._log_every:
            return
        now = time.monotonic()
        seconds = now - self._since
        row = self._row(number, result, learning_rate, seconds)
        self._diagnostics.waited(row.data_wait_share, seconds)
        self._restart(now)
        if self._journal is None:
            return
        self._journal.append(row.model_dump())
        if self._events is not None:
            self._events.add(number, time.time(), _scalars(row))
        patience = _FLUSH_SHARE * (now - self._started)
        if now - self._flushed > min(_LAST_FLUSH_SECONDS, max(_FIRST_FLUSH_SECONDS, patience)):
            self._flush_rows(now)
        if self._events is not None and now - self._events_flushed > max(_EVENTS_SECONDS, patience):
            self._flush_events(now)

    def flush(self) -> None:
        """Write what was logged; called before every checkpoint's card, so a card implies its metrics.

        Unless the store has refused them: then they come later, or are lost with this process.
        """
        self._best_effort.retry_now()
        now = time.monotonic()
        self._flush_rows(now)
        self._flush_events(now)

    def _flush_rows(self, now: float) -> None:
        if self._journal is not None and self._best_effort.write(self._journal.flush):
            self._flushed = now

    def _flush_events(self, now: float) -> None:
        if self._events is not None and self._best_effort.write(self._events.flush):
            self._events_flushed = now

    def resume_clock(self) -> None:
        """Leave the time since the last row out of the rates: it went into a checkpoint."""
        self._restart(time.monotonic())

    def _row(self, number: int, result: StepResult, learning_rate: float, seconds: float) -> MetricsRow:
        rate = self._steps * self._batch_size / seconds if seconds else 0.0
        waited = max(self._waited_seconds, self._step_timer.waited_seconds if self._step_timer else 0.0)
        peak = self._model_flops.peak_flops
        return MetricsRow(
            step=number,
            position=number * self._batch_size,
            loss=result.loss.hex(),
            learning_rate=learning_rate,
            grad_norm=result.grad_norm.hex(),
            images_per_second=rate,
            data_wait_share=min(1.0, waited / seconds) if seconds else 0.0,
            seconds=seconds,
            mfu=rate * self._model_flops.flops_per_image / peak if peak else None,
            rank_skew=self._step_timer.skew if self._step_timer else 0.0,
            resident_bytes=self._step_timer.resident_bytes if self._step_timer else 0,
            skipped=self._diagnostics.skipped,
        )

    def _restart(self, now: float) -> None:
        self._since, self._steps, self._waited_seconds = now, 0, 0.0
        if self._step_timer is not None:
            self._step_timer.clear()


def _scalars(row: MetricsRow) -> dict[str, float]:
    """For TensorBoard, by tag."""
    values = {tag: getattr(row, tag) for tag in _TAGS}
    values |= {"loss": float.fromhex(row.loss), "grad_norm": float.fromhex(row.grad_norm)}
    return {tag: float(value) for tag, value in values.items() if value is not None}


class StepTimer:
    """How the time and memory of a rank go: sums of its step, and of the slowest ranks since the last row.

    What is compared is the time of the forward passes: the rest of a step waits for the other ranks, so that it takes
    as long everywhere. In ZeRO stage 3 forward gathers weights, and waits a little as well.
    """

    def __init__(self) -> None:
        self._waited = self._forward = 0.0
        self.waited_seconds = self._slowest = self._fastest = 0.0
        self.resident_bytes = 0

    def timed(self, phase: Literal["wait", "forward", "update"], seconds: float) -> None:
        """*seconds* of this step went into *phase*, as the training loop reports it."""
        if phase == "wait":
            self._waited += seconds
        elif phase == "forward":
            self._forward += seconds

    def take(self) -> list[float]:
        """What this rank exchanges at the end of a step: numbers of which the largest counts."""
        numbers = [self._waited, self._forward, -self._forward, float(resident_bytes())]
        self._waited = self._forward = 0.0
        return numbers

    def absorb(self, largest: Sequence[float]) -> None:
        """The largest of all ranks' numbers of a step."""
        waited, slowest, fastest, resident = largest
        self.waited_seconds += waited
        self._slowest += slowest
        self._fastest -= fastest
        self.resident_bytes = max(self.resident_bytes, int(resident))

    def clear(self) -> None:
        """Begin a new row."""
        self.waited_seconds = self._slowest = self._fastest = 0.0
        self.resident_bytes = 0

    @property
    def skew(self) -> float:
        """By how much the slowest rank of each step is slower than its fastest: 0.1 is 10 %."""
        return self._slowest / self._fastest - 1.0 if self._fastest > 0 else 0.0


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the kernel does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


class TensorBoardWriter:
    """Scalars of one attempt; each flush puts a file of its own below *prefix*."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self._rows: list[tuple[int, float, Mapping[str, float]]] = []
        self._parts = 0

    def add(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """*values* by tag at *step*, measured at *time* (seconds since 1970)."""
        self._rows.append((step, time, values))

    def flush(self) -> None:
        """Put what was added since the last flush; nothing when there is nothing."""
        if not self._rows:
            return
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped] # noqa: PLC0415 - with protobuf; only rank 0 needs it, and not at start

        with tempfile.TemporaryDirectory(prefix="vitpipe-events-") as folder:
            # Its queue without a limit: its thread, which dies on a full disk, would leave us waiting for room in it.
            writer = SummaryWriter(folder, max_queue=0, filename_suffix=f".part-{self._parts:05d}")
            for step, time, values in self._rows:
                for tag, value in values.items():
                    writer.add_scalar(tag, value, step, walltime=time)
            writer.close()
            (path,) = Path(folder).iterdir()
            self._store.put(f"{self._prefix}/{path.name}", path.read_bytes())
        self._rows, self._parts = [], self._parts + 1
