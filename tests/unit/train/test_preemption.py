"""Wishes to stop: which one counts, how much of the grace period is left, and what SIGTERM does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pipeline.train import preemption as stopping
from pipeline.train.preemption import INTERRUPT, RELOCATE, RELOCATING, SIGTERM, StopSignal, listening


def test_nobody_asked() -> None:
    stop = StopSignal(30.0)
    assert (stop.strength, stop.seconds_left) == (0.0, 30.0)


def test_the_first_wish_counts_but_an_interruption_is_stronger(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now)
    stop = StopSignal(30.0)
    stop.request(RELOCATING)
    assert stop.strength == RELOCATE
    now = 110.0
    assert stop.seconds_left == 20.0
    stop.request(SIGTERM)
    assert (stop.strength, stop.seconds_left) == (INTERRUPT, 30.0)
    now = 125.0
    stop.request(SIGTERM)
    stop.request(RELOCATING)
    assert (stop.strength, stop.seconds_left) == (INTERRUPT, 15.0)
    now = 200.0
    assert stop.seconds_left == 0.0


def test_sigterm_is_a_wish_while_somebody_listens() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        stop = StopSignal(30.0)
        with listening(stop):
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.strength == INTERRUPT
    finally:
        signal.signal(signal.SIGTERM, before)
        stopping._previous.clear()


def test_sigterm_does_what_it_did_when_nobody_listens() -> None:
    code = (
        "import os, signal\n"
        "from pipeline.train.preemption import StopSignal, listening\n"
        "with listening(StopSignal(1.0)): pass\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGTERM
