"""Whether a checkpoint still fits into the grace period: by what is left of it when training could begin one."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base.errors import InterruptedRunError
from pipeline.base.world import SingleProcess
from pipeline.pretrain import trainer as rank_module
from pipeline.pretrain.trainer import Attempt, RankContext, Trainer
from pipeline.train.preemption import INTERRUPT
from tests.unit.pretrain.test_recipe import recipe

ASKED, GRACE = 1000.0, 30.0


@pytest.mark.parametrize(
    ("waited", "write", "read", "is_saved"),
    [
        (0.0, 10.0, 0.0, True),
        (20.0, 10.0, 0.0, False),  # the checkpoint before took most of the grace period
        (20.0, 6.0, 0.0, True),
        (0.0, 0.0, 10.0, True),  # none was written in this attempt: as long as it took to read
        (0.0, 0.0, 25.0, False),
        (29.0, 0.0, 2.0, False),
    ],
)
def test_what_is_left_counts(
    waited: float, write: float, read: float, is_saved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = ASKED
    saved: list[int] = []

    class Writer:
        write_seconds = write

        def wait(self) -> bool:
            nonlocal now
            now += waited
            return True

    nothing: Any = SimpleNamespace(mark=lambda *_: None, finish=lambda: None)
    parts: dict[str, Any] = dict.fromkeys((field.name for field in fields(Attempt)), nothing)
    parts["rank"] = RankContext(nothing, {}, SingleProcess(), "0001", nothing, nothing, nothing)
    rank = Trainer(Attempt(**parts | {"recipe": recipe(), "checkpoints": Writer(), "read_seconds": read}))
    monkeypatch.setattr(Trainer, "_save", lambda _self, step, wait: saved.append(step))
    monkeypatch.setattr(rank_module, "time", SimpleNamespace(monotonic=lambda: now))
    with pytest.raises(InterruptedRunError, match="was saved" if is_saved else "no time to save step 7"):
        rank._leave(7, INTERRUPT, until=ASKED + GRACE)
    assert saved == ([7] if is_saved else [])
