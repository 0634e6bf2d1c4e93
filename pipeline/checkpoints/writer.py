"""Checkpoints in the background: training pauses for a copy in memory, the rest happens while it goes on.

A store that is full, denies or breaks is an alarm, not the end: training goes on, and the next checkpoint tries again,
up to ``max_failed_saves`` in a row. One that hangs without an error gives a message while training waits for it, and
ends the run after ``patience_seconds``. A newer attempt of the same run ends this one at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pipeline.base.errors import FailedError, SupersededError, VitpipeError
from pipeline.base.failpoints import fail_point
from pipeline.base.world import Collective
from pipeline.checkpoints.retention import Retention, apply_retention
from pipeline.checkpoints.save import (
    SaveContext,
    TrainPosition,
    WrittenFiles,
    check_written,
    commit,
    discard,
    make_card,
    put_rank_file,
    put_weights,
)
from pipeline.checkpoints.state import EMA, WEIGHT, FragmentSource, Snapshot
from pipeline.records.run import EMA_WEIGHTS, WEIGHTS

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0  # before the last checkpoint is tried again; doubled each time
_QUIET_SECONDS = 30.0  # training waits this long for the previous checkpoint before there is a message
Assemble = Callable[[FragmentSource, str], dict[str, Tensor] | None]
Pack = Callable[[dict[str, Tensor]], bytes]


@dataclass(frozen=True)
class _Outcome:
    """How a save ended, the same on every rank. ``is_unneeded``: no card can name what was written."""

    kind: Literal["committed", "failed", "superseded"]
    alarm: str = ""
    is_unneeded: bool = False


class CheckpointWriter:
    """Writes one checkpoint at a time. The package's docstring says what the arguments are and how it is used.

    The public methods belong to the thread that trains. Every rank calls ``save`` and ``wait`` alike.
    """

    def __init__(  # noqa: PLR0913 - what is written, by whom, and how far a store may go
        self,
        saving: SaveContext,
        collective: Collective,
        assemble: Assemble,
        pack: Pack,
        *,
        retention: Retention | None = None,
        max_failed_saves: int = 3,
        patience_seconds: float = threading.TIMEOUT_MAX,
        on_message: Callable[[str], None] | None = None,
    ) -> None:
        self.saving, self.collective = saving, collective
        self.write_seconds = 0.0
        self._assemble, self._pack = assemble, pack
        self._retention, self._max_failed_saves = retention or Retention(), max_failed_saves
        self._patience_seconds, self._on_message = patience_seconds, on_message or self._alarm
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._is_committed = True
        self._failed_in_a_row = 0
        self._alarms: list[str] = []
        self._guard = threading.Lock()

    def save(self, step: int, position: int, source: FragmentSource) -> float:
        """Copy the state of *source* and have it written; seconds that training paused.

        Waits for the previous one. Raises FailedError after too many failures in a row, SupersededError when a newer
        attempt has begun.
        """
        started = time.monotonic()
        self.wait()
        self._snapshot.take(source)
        fail_point("checkpoint.after-snapshot")
        self._is_committed = False
        self._thread = threading.Thread(
            target=self._write, args=(TrainPosition(step, position),), name=f"checkpoint of step {step}", daemon=True
        )
        self._thread.start()
        return time.monotonic() - started

    def wait(self) -> bool:
        """Wait until nothing is under way; True when the last save was committed. Raises as ``save``."""
        if self._thread is not None:
            self._join(self._thread)
            self._thread = None
        self.check()
        return self._is_committed

    def _join(self, thread: threading.Thread) -> None:
        """Wait for *thread*, with a message when that takes long."""
        quiet = min(_QUIET_SECONDS, self._patience_seconds)
        thread.join(quiet)
        if thread.is_alive():
            self._on_message(f"{thread.name} is still being written, training waits for it")
            thread.join(self._patience_seconds - quiet)
        if thread.is_alive():
            raise FailedError(
                f"{thread.name} was not written, nor refused, in {self._patience_seconds:g} s: the store hangs",
                "mend the store, then give the same command again; save_patience_seconds sets how long to wait",
            )

    def save_and_wait(self, step: int, position: int, source: FragmentSource) -> None:
        """As ``save``, again and again until it is committed: the last checkpoint has no next one."""
        pause = _FIRST_PAUSE_SECONDS
        self.save(step, position, source)
        while not self.wait():
            time.sleep(pause)
            pause *= 2
            self.save(step, position, source)

    def close(self) -> None:
        """Wait until nothing is under way; a run that ends well calls it last. Raises as ``save``."""
        self.wait()

    def check(self) -> None:
        """Raise what ended the background for good."""
        if self._error is not None:
            raise self._error

    def take_alarms(self) -> list[str]:
        """What went wrong since the last call, one line each; for the journal. Rank 0 has those of all ranks."""
        with self._guard:
            taken, self._alarms = self._alarms, []
        return taken

    def _alarm(self, message: str) -> None:
        if self.collective.world.is_first:
            _log.warning("%s", message)
        with self._guard:
            self._alarms.append(message)

    def _write(self, train_position: TrainPosition) -> None:
        """In the background. Whatever is raised here is raised again where training calls next."""
        started = time.monotonic()
        try:
            outcome = self._save_together(train_position)
            self.write_seconds = time.monotonic() - started
            self._settle(train_position, outcome)
        except Exception as error:
            self._error = error

    def _settle(self, train_position: TrainPosition, outcome: _Outcome) -> None:
        if outcome.kind == "superseded":
            self._error = SupersededError(outcome.alarm)
            return
        if outcome.alarm:
            self._alarm(outcome.alarm)
        self._is_committed = outcome.kind == "committed"
        self._failed_in_a_row = 0 if self._is_committed else self._failed_in_a_row + 1
        if self._failed_in_a_row >= self._max_failed_saves:
            self._error = FailedError(
                f"{self._failed_in_a_row} checkpoints in a row were not saved; the last one: {outcome.alarm}",
                "mend the store, then give the same command again",
            )

    def _save_together(self, train_position: TrainPosition) -> _Outcome:
        """Every rank does its part, then rank 0 decides for all."""
        reports = self.collective.gather(self._write_own(train_position))
        problems = [f"rank {rank}: {report}" for rank, report in enumerate(reports) if isinstance(report, str)]
        if problems:
            self._discard(train_position.step)
            return _Outcome("failed", _failure_message(train_position, "; ".join(problems)), is_unneeded=True)
        written = [report for report in reports if isinstance(report, WrittenFiles)]
        kinds = [WEIGHT] + [EMA] * any(piece.kind == EMA for row in written for piece in row.pieces)
        full_weights = [self._assemble(self._snapshot, kind) for kind in kinds]
        decided = self._decide(train_position, written, full_weights) if self.collective.world.is_first else None
        outcome: _Outcome = self.collective.broadcast(decided)
        if outcome.is_unneeded:
            self._discard(train_position.step)
        return outcome

    def _write_own(self, train_position: TrainPosition) -> WrittenFiles | str:
        try:
            return put_rank_file(self.saving, self.collective.world, train_position, self._snapshot)
        except Exception as error:  # the other ranks get it as this one's report: none waits for the file
            return _first_line(error)

    def _decide(
        self, train_position: TrainPosition, written: list[WrittenFiles], full_weights: list[dict[str, Tensor] | None]
    ) -> _Outcome:
        """On rank 0: compare, put the whole weights, commit, remove what retention does not keep."""
        try:
            check_written(self._snapshot.shapes(), train_position, written)
            files = []
            for name, tensors in zip((WEIGHTS, EMA_WEIGHTS), full_weights, strict=False):
                if tensors is None:
                    raise FailedError(f"rank 0 was not given the tensors of {name}")
                files.append(put_weights(self.saving, train_position, name, self._pack(tensors)))
            card = make_card(self.saving, train_position, written, *files)
        except Exception as error:
            return _Outcome("failed", _failure_message(train_position, _first_line(error)), is_unneeded=True)
        try:
            existing = commit(self.saving, card)
        except SupersededError as error:
            return _Outcome("superseded", error.message)
        except Exception as error:  # the card may be there all the same: what it names has to stay
            return _Outcome("failed", _failure_message(train_position, _first_line(error)))
        if existing is not None:
            alarm = f"step {train_position.step} was committed by attempt {existing.attempt} already; that one stands"
            return _Outcome("committed", alarm, is_unneeded=True)
        return _Outcome("committed", self._retire(train_position))

    def _retire(self, train_position: TrainPosition) -> str:
        try:
            apply_retention(self.saving.workspace, self.saving.run, self._retention)
        except Exception as error:
            return f"after step {train_position.step}, old checkpoints were not removed: {_first_line(error)}"
        return ""

    def _discard(self, step: int) -> None:
        """Make room, as far as the store lets us; ``vitpipe gc`` finds the rest."""
        try:
            more = (WEIGHTS, EMA_WEIGHTS) if self.collective.world.is_first else ()
            discard(self.saving, self.collective.world, step, more)
        except Exception as error:
            _log.info("what was written of step %d stays for now: %s", step, _first_line(error))


def _failure_message(train_position: TrainPosition, problem: str) -> str:
    return f"checkpoint of step {train_position.step} was not saved, training goes on: {problem}"


def _first_line(error: Exception) -> str:
    message = (error.message if isinstance(error, VitpipeError) else "") or f"{type(error).__name__}: {error}"
    return message.splitlines()[0]
