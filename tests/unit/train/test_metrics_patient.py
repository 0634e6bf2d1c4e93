"""What is stored beside training waits for a store that refuses, and ends nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.base import retry as patience
from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.base.journal import Journal, read_journal
from pipeline.base.retry import BestEffortWriter
from pipeline.base.store.local import LocalStore
from pipeline.train import metrics as watching
from pipeline.train.metrics import MetricsLogger, TensorBoardWriter
from pipeline.train.torch_engine import StepResult


class Moody(LocalStore):
    """Raises *refusal*, where there is one, instead of putting."""

    refusal: Exception | None = None
    asked = 0

    def put(self, key: str, data: bytes) -> None:
        """See Store."""
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal
        super().put(key, data)


@pytest.fixture
def store(tmp_path: Path) -> Moody:
    return Moody(tmp_path)


class Clock:
    """What the modules take for the time."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    monkeypatch.setattr(watching, "time", clock)
    return clock


REFUSALS = [FailedError("No space left on device"), StoreAccessError("Read-only file system"), OSError(28, "full")]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: type(error).__name__)
def test_training_goes_on_and_no_row_is_lost(store: Moody, clock: Clock, refusal: Exception) -> None:
    said: list[str] = []
    events = TensorBoardWriter(store, "t")
    watch = MetricsLogger(Journal(store, "m"), 1, 16, events=events, best_effort=BestEffortWriter(said.append))
    store.refusal = refusal
    for number in range(1, 9):
        clock.now += 100.0
        watch.step(number, StepResult(1.0, 1.0), 0.1)
    watch.flush()
    assert len(said) == 1
    assert "are not stored for now, they are kept and training goes on: " in said[0]
    assert str(refusal) in said[0]
    store.refusal = None
    watch.flush()
    assert [row["step"] for row in read_journal(store, "m")] == list(range(1, 9))
    assert len(list(store.list("t/"))) == 1
    store.refusal = refusal
    watch.step(9, StepResult(1.0, 1.0), 0.1)
    watch.flush()
    assert len(said) == 2, "it had gone well in between"


def test_who_has_nothing_to_store_does_not_find_out_that_it_can(store: Moody, clock: Clock) -> None:
    said: list[str] = []
    best_effort, journals = BestEffortWriter(said.append), [Journal(store, name) for name in ("full", "empty")]
    store.refusal = FailedError("full")
    journals[0].append({"step": 1})
    for _ in range(3):
        for journal in journals:
            best_effort.retry_now()
            best_effort.write(journal.flush)
    assert len(said) == 1


def test_a_store_that_is_away_is_asked_once_a_minute_unless_somebody_insists(store: Moody, clock: Clock) -> None:
    watch = MetricsLogger(Journal(store, "m"), 1, 16, best_effort=BestEffortWriter(lambda _: None))
    store.refusal = StoreAccessError("away")
    for number in range(1, 301):
        clock.now += 1.0
        watch.step(number, StepResult(1.0, 1.0), 0.1)
    assert 4 <= store.asked <= 6
    asked = store.asked
    watch.flush()
    assert store.asked == asked + 1


def test_what_is_no_refusal_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        BestEffortWriter(lambda _: None).write(lambda: 1 / 0)


def test_it_tells_that_training_waits(store: Moody) -> None:
    seen: list[str] = []

    @contextmanager
    def around() -> Iterator[None]:
        seen.append("in")
        try:
            yield
        finally:
            seen.append("out")

    store.refusal = FailedError("full")
    assert not BestEffortWriter(lambda _: None, around).write(lambda: store.put("a", b""))
    assert seen == ["in", "out"]
