"""What is logged, when, and that a loss or gradient that is not finite ends the run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.base.errors import DivergedError
from pipeline.base.journal import Journal, read_journal
from pipeline.base.store import open_store
from pipeline.records.run import MetricsRow
from pipeline.train import metrics as watching
from pipeline.train.metrics import MetricsLogger
from pipeline.train.torch_engine import StepResult


def rows(folder: Path) -> list[MetricsRow]:
    """What is in the journal."""
    return [MetricsRow.model_validate(row) for row in read_journal(open_store(str(folder)), "m")]


def test_rows_stand_at_multiples_of_log_every(tmp_path: Path) -> None:
    watch = MetricsLogger(Journal(open_store(str(tmp_path)), "m"), 3, 16)
    for number in range(1, 11):
        watch.step(number, StepResult(1 / number, number / 7), 0.1 * number)
    watch.flush()
    found = rows(tmp_path)
    assert [row.step for row in found] == [3, 6, 9]
    assert [row.position for row in found] == [48, 96, 144]
    assert [row.loss for row in found] == [(1 / step).hex() for step in (3, 6, 9)]
    assert [row.grad_norm for row in found] == [(step / 7).hex() for step in (3, 6, 9)]
    assert [float.fromhex(row.loss) for row in found] == [1 / 3, 1 / 6, 1 / 9]
    assert [row.learning_rate for row in found] == pytest.approx([0.3, 0.6, 0.9])


def test_rates_count_the_images_since_the_last_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 14.0])
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: now))
    now = next(clock)
    watch = MetricsLogger(Journal(open_store(str(tmp_path)), "m"), 2, 50)
    for number in range(1, 5):
        watch.waited(1.0)
        if number % 2 == 0:
            now = next(clock)
        watch.step(number, StepResult(1.0, 1.0), 0.1)
    watch.flush()
    found = rows(tmp_path)
    assert [row.seconds for row in found] == [10.0, 4.0]
    assert [row.images_per_second for row in found] == [10.0, 25.0]
    assert [row.data_wait_share for row in found] == [0.2, 0.5]


def test_a_checkpoint_is_left_out_of_the_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: now))
    watch = MetricsLogger(Journal(open_store(str(tmp_path)), "m"), 1, 50)
    now = 100.0
    watch.resume_clock()
    now = 101.0
    watch.step(1, StepResult(1.0, 1.0), 0.1)
    watch.flush()
    assert [row.images_per_second for row in rows(tmp_path)] == [50.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("journal", [True, False])
def test_what_is_not_finite_ends_the_run_at_once(value: float, journal: bool, tmp_path: Path) -> None:
    for result in (StepResult(value, 1.0), StepResult(1.0, value)):
        watch = MetricsLogger(Journal(open_store(str(tmp_path)), "m") if journal else None, 100, 16)
        watch.step(6, StepResult(1.0, 1.0), 0.1)
        with pytest.raises(DivergedError, match=r"step 7: .*learning_rate") as caught:
            watch.step(7, result, 0.1)
        assert caught.value.exit_code == 1
