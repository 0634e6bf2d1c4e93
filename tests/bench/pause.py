"""How long training pauses for a checkpoint: in the background, against one that is waited for.

ViT-S/16 in float32 with AdamW: 265 MB of state in the rank's file and 88 MB of whole weights, to a local folder, by one
process that goes on training while the background writes. The two ways take turns. What the background costs training
beside the pause is told as well: the time of an update while a checkpoint is written, by that of one without.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pipeline.base.store import open_store
from pipeline.base.world import SingleProcess
from pipeline.checkpoints.card import take_attempt
from pipeline.checkpoints.retention import Retention
from pipeline.checkpoints.save import SaveContext
from pipeline.checkpoints.state import FragmentSource
from pipeline.checkpoints.writer import CheckpointWriter
from pipeline.models.config import config_by_name
from pipeline.models.vit import ViT, has_weight_decay
from pipeline.models.weights import ModelDescription, pack_weights
from pipeline.train.distributed import gather_full_state
from pipeline.train.torch_engine import TorchEngine
from tests.bench.row import Row
from tests.bench.training import CLASSES, OPTIMIZER, batches, cross_entropy, seconds_of

_CONFIG = config_by_name("S/16", num_classes=CLASSES)
_ROUNDS, _BATCH = 5, 2


def measure() -> list[Row]:
    """Medians over rounds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vitpipe-bench-") as folder:
        training, writer = _Training(), _writer(folder)
        writer.save_and_wait(0, 0, training.engine)  # the first touches the pages of the snapshot's buffer
        paused, waited, beside, alone = [], [], [], []
        for number in range(1, 2 * _ROUNDS, 2):
            alone.append(seconds_of(training.update))
            paused.append(writer.save(number, number, training.engine))
            beside += _while_writing(training, writer)
            waited.append(seconds_of(partial(writer.save_and_wait, number + 1, number + 1, training.engine)))
    pause, whole = statistics.median(paused), statistics.median(waited)
    what = "pause of training for a checkpoint of 353 MB, background against waiting"
    rows = [Row(what, f"{pause * 1e3:.0f} ms", f"{whole * 1e3:.0f} ms", whole / pause, least=10.0)]
    if beside:
        slowed, plain = statistics.median(beside), statistics.median(alone)
        told = (f"{slowed * 1e3:.0f} ms", f"{plain * 1e3:.0f} ms")
        rows.append(Row("an update while a checkpoint is written, against one without", *told, plain / slowed))
    return rows


class _Training:
    """Updates of the network."""

    def __init__(self) -> None:
        self.engine = TorchEngine(ViT(_CONFIG), OPTIMIZER, has_weight_decay)
        self._source = batches(_BATCH, _CONFIG)
        self.update()

    def update(self) -> None:
        batch = next(self._source)
        images = batch.images.to(torch.float32) / 127.5 - 1
        self.engine.update([partial(cross_entropy, self.engine.module, images, batch.labels)], 1e-4)


def _while_writing(training: _Training, writer: CheckpointWriter) -> list[float]:
    """Seconds of the updates that were done while the checkpoint was being written."""
    written = writer.write_seconds  # set anew when a write ends
    found, until = [], time.monotonic() + 60
    while writer.write_seconds == written and time.monotonic() < until:
        found.append(seconds_of(training.update))
    assert writer.wait(), f"the checkpoint was not saved: {writer.take_alarms()}"
    return found[:-1]  # the last one was partly alone


def _writer(folder: str) -> CheckpointWriter:
    store, run = open_store(folder), "bench"
    saving = SaveContext(store, run, take_attempt(store, run), 0, "fp32", "fingerprint", "dataset", "bench")
    return CheckpointWriter(saving, SingleProcess(), _assemble, _pack(), retention=Retention(keep_last=2))


def _assemble(source: FragmentSource, kind: str) -> dict[str, Tensor] | None:
    return gather_full_state(source.fragments(), source.shapes(), kind)


def _pack() -> Callable[[dict[str, Tensor]], bytes]:
    description = ModelDescription(_CONFIG, {}, tuple(map(str, range(CLASSES))))
    return lambda tensors: pack_weights(tensors, description)


if __name__ == "__main__":
    for row in measure():
        print(row)
