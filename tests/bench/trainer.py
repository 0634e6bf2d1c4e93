"""Our trainer (loop and engine) against a bare PyTorch loop, over the same network and the same batches in memory.

The network of 5.5 M parameters, 64 images of 32 px a step, one thread. The bare loop normalises, goes forward and
backward, clips and steps AdamW; for bf16 it uses autocast. Through Ray Train the trainer runs ZeRO-1 on one worker, and
the bare loop runs in a process without Ray; one waits while the other is measured.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jobs.base.ray_session import connected
from pipeline.base.world import World
from pipeline.models.vit import ViT, has_weight_decay
from pipeline.train.torch_engine import TorchEngine
from tests.bench.row import Row
from tests.bench.training import OPTIMIZER, SMALL, Bare, Ours, engine_recipe, rates_row, seconds_of

_BATCH, _STEPS, _ROUNDS = 64, 4, 6
_WAIT_SECONDS, _TICK_SECONDS = 200.0, 0.02
_SIDES = ("ours", "bare")


def measure() -> list[Row]:
    """In this process, then through Ray Train in both precisions."""
    torch.set_num_threads(1)
    rows = [_here()]
    for bf16 in (False, True):
        ours, bare = _through_ray(bf16)
        precision = "bf16 against autocast" if bf16 else "fp32"
        rows.append(rates_row(f"through Ray Train, ZeRO-1, one worker, {precision}", ours, bare, 0.97, "images/s"))
    return rows


def _here() -> Row:
    loops: dict[str, Callable[[int], None]] = {
        "ours": Ours(TorchEngine(ViT(SMALL), OPTIMIZER, has_weight_decay), World(), _BATCH),
        "bare": Bare(_BATCH, bf16=False),
    }
    rates: dict[str, list[float]] = {side: [] for side in _SIDES}
    for number in range(_ROUNDS + 1):
        for side, loop in loops.items():
            measured = _rate(loop)
            if number:
                rates[side].append(measured)
    return rates_row("in one process, fp32", rates["ours"], rates["bare"], 0.97, "images/s")


def _rate(loop: Callable[[int], None]) -> float:
    return _BATCH * _STEPS / seconds_of(lambda: loop(_STEPS))


class _Turns:
    """Two processes that measure in turns, by files in *folder*: what a side measured in a round is its file."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def measure(self, side: str, loop: Callable[[int], None]) -> None:
        """All rounds of *side*, the first of which warms up."""
        loop(2)
        for number in range(_ROUNDS + 1):
            before = ("bare", number - 1) if side == "ours" else ("ours", number)
            self.wait(*before)
            rate = _rate(loop)
            partial = self._path(side, number).with_suffix(".part")
            partial.write_text(str(rate))
            partial.rename(self._path(side, number))

    def wait(self, side: str, number: int) -> None:
        """Until *side* has done round *number*. Raises TimeoutError."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while number >= 0 and not self._path(side, number).exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the side {side} has not measured round {number}")
            time.sleep(_TICK_SECONDS)

    def rates(self, side: str) -> list[float]:
        """Images per second of each round but the first."""
        return [float(self._path(side, number).read_text()) for number in range(1, _ROUNDS + 1)]

    def _path(self, side: str, number: int) -> Path:
        return self._folder / f"{side}-{number}.txt"


def _through_ray(bf16: bool) -> tuple[list[float], list[float]]:
    """Images per second of the rounds: ours in a worker of Ray Train, the bare loop in a plain process."""
    from pipeline.train.ray_executor import ElasticSizes, launch

    with tempfile.TemporaryDirectory(prefix="vitpipe-bench-") as folder:
        command = [sys.executable, "-m", "tests.bench.trainer", folder, "bf16" if bf16 else "fp32"]
        bare = subprocess.Popen(command)
        try:
            with connected(None):
                places = ElasticSizes(sizes=[1], resources={"CPU": 1}, max_failures=0, grace_seconds=30)
                launch(_worker, {"folder": folder, "bf16": bf16}, places, lambda *told: print(*told, file=sys.stderr))
            assert bare.wait(_WAIT_SECONDS) == 0, "the bare loop failed"
        finally:
            bare.kill()
            bare.wait()
        turns = _Turns(folder)
        return turns.rates("ours"), turns.rates("bare")


def _worker(config: dict[str, Any]) -> None:
    """Runs in a worker of Ray Train."""
    from pipeline.train.engine import DeepSpeedEngine

    torch.set_num_threads(1)
    recipe = engine_recipe(1, bf16=config["bf16"])
    engine = DeepSpeedEngine(ViT(SMALL), OPTIMIZER, recipe, _BATCH, World(), has_weight_decay)
    _Turns(config["folder"]).measure("ours", Ours(engine, World(), _BATCH))


def _bare(folder: str, precision: str) -> None:
    torch.set_num_threads(1)
    _Turns(folder).measure("bare", Bare(_BATCH, bf16=precision == "bf16"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _bare(*sys.argv[1:])
    else:
        for row in measure():
            print(row)
