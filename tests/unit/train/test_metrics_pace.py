"""What a rank tells of its time, how the ranks' largest numbers become a row, and the files that are left of it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from pipeline.base.journal import Journal, read_journal
from pipeline.base.store import open_store
from pipeline.records.run import MetricsRow
from pipeline.train.device import measured_peak
from pipeline.train.distributed import AsyncAllReduce
from pipeline.train.metrics import (
    NUM_EXCHANGED,
    MetricsLogger,
    ModelFlops,
    StepTimer,
    TensorBoardWriter,
    resident_bytes,
)
from pipeline.train.rank_log import RankLogHandler
from pipeline.train.torch_engine import StepResult


def test_a_rank_gives_its_numbers_of_one_step() -> None:
    step_timer = StepTimer()
    for phase, seconds in (("wait", 0.25), ("forward", 0.5), ("forward", 0.5), ("update", 3.0)):
        step_timer.timed(phase, seconds)  # type: ignore[arg-type]
    waited, forward, negative, resident = step_timer.take()
    assert (waited, forward, negative) == (0.25, 1.0, -1.0)
    assert resident == pytest.approx(resident_bytes(), rel=0.5)
    assert step_timer.take()[:3] == [0.0, 0.0, 0.0]


def test_the_slowest_rank_of_each_step_is_compared_with_its_fastest() -> None:
    step_timer = StepTimer()
    ranks = [[0.1, 1.0, -1.0, 5.0], [0.4, 1.5, -1.5, 9.0]]
    largest = [max(column) for column in zip(*ranks, strict=True)]
    step_timer.absorb(largest)
    step_timer.absorb([0.2, 1.0, -1.0, 7.0])
    assert step_timer.skew == pytest.approx(0.25)
    assert step_timer.waited_seconds == pytest.approx(0.6)
    assert step_timer.resident_bytes == 9
    step_timer.clear()
    assert (step_timer.skew, step_timer.waited_seconds, step_timer.resident_bytes) == (0.0, 0.0, 0)


def test_one_rank_agrees_with_itself_a_step_late() -> None:
    agreement = AsyncAllReduce(NUM_EXCHANGED)
    assert agreement.exchange([1, 2, 3, 4]) is None
    assert agreement.exchange([5, 6, 7, 8]) == [1, 2, 3, 4]
    assert agreement.finish() == [5, 6, 7, 8]
    assert agreement.finish() is None


def test_a_row_tells_utilisation_skew_and_memory(tmp_path: Path) -> None:
    store, step_timer = open_store(str(tmp_path)), StepTimer()
    events = TensorBoardWriter(store, "t")
    watch = MetricsLogger(
        Journal(store, "m"), 1, 16, step_timer=step_timer, events=events, model_flops=ModelFlops(1e6, 1e12)
    )
    step_timer.absorb([0.0, 1.5, -1.0, 123.0])
    watch.step(1, StepResult(1.0, 1.0), 0.1)
    watch.flush()
    (row,) = [MetricsRow.model_validate(row) for row in read_journal(store, "m")]
    assert row.mfu == pytest.approx(row.images_per_second * 1e6 / 1e12)
    assert row.rank_skew == pytest.approx(0.5)
    assert (row.resident_bytes, row.skipped) == (123, 0)
    watch.step(2, StepResult(1.0, 1.0), 0.1)
    watch.flush()
    assert len(list(store.list("t/"))) == 2


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    events = TensorBoardWriter(store, "t")
    events.add(7, 1000.5, {"loss": 0.25})
    events.flush()
    events.flush()
    (info,) = store.list("t/")
    data, found = store.read(info.key), []
    while data:
        length = int.from_bytes(data[:8], "little")
        assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    scalars = [(e.step, e.wall_time, v.tag, v.simple_value) for e in found for v in e.summary.value]
    assert scalars == [(7, 1000.5, "loss", 0.25)]


def test_a_rank_keeps_its_log_and_how_it_ended(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    log = RankLogHandler(store, "logs/rank-0.log")
    logger = logging.getLogger("pipeline.train.x")

    def work() -> None:
        with log:
            logger.info("begins")
            log.flush_to_store()
            assert store.read("logs/rank-0.log").decode().endswith("INFO pipeline.train.x: begins\n")
            logger.debug("not kept")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    text = store.read("logs/rank-0.log").decode()
    assert "this rank ends: ValueError: broken" in text
    assert "Traceback" in text
    assert "not kept" not in text
    logger.warning("after it")
    assert "after it" not in store.read("logs/rank-0.log").decode()


def test_the_peak_is_positive_and_plausible() -> None:
    assert 1e8 < measured_peak(torch.float32, torch.device("cpu")) < 1e15
