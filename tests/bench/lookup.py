"""Looking up batches in the order of 10^9 samples in 10^5 shards, in a process of its own.

Each batch stands in another epoch, so that the order of that epoch's shards is laid out for it too. Times are of CPU,
one thread. Memory is the peak of the process, with Python and numpy.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np

from pipeline.stream.order import Order
from tests.bench.peak import peak_bytes
from tests.bench.row import Row

_SHARDS, _OF_A_SHARD = 100_000, 10_000
_BATCHES = 200
_ALLOWED_SECONDS, _ALLOWED_BYTES = 0.1, 200_000_000
_LAYOUTS = {"P = 8": (8, 4_096), "P = 1,024": (1_024, 32_768)}


def measure() -> list[Row]:
    rows = []
    for name, (partitions, batch_size) in _LAYOUTS.items():
        command = [sys.executable, "-m", "tests.bench.lookup", str(partitions), str(batch_size)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        what = f"a batch of {batch_size:,}, {name}"
        usual, slowest = f"{1e3 * found['usual']:.1f} ms", f"{1e3 * found['slowest']:.1f} ms"
        rows += [
            _row(f"first batch of a process: {what}", f"{1e3 * found['first']:.1f} ms", found["first"]),
            _row(f"slowest of {_BATCHES} batches (median {usual}): {what}", slowest, found["slowest"]),
            Row(
                f"memory: {what}",
                f"{found['bytes'] / 1e6:.0f} MB",
                f"{_ALLOWED_BYTES / 1e6:.0f} MB allowed",
                _ALLOWED_BYTES / found["bytes"],
                1.0,
            ),
        ]
    return rows


def _row(what: str, told: str, seconds: float) -> Row:
    return Row(what, told, f"{1e3 * _ALLOWED_SECONDS:.0f} ms allowed", _ALLOWED_SECONDS / seconds, 1.0)


def _look_up(partitions: int, batch_size: int) -> dict[str, float]:
    """Seconds of the first batch, of the usual one and of the slowest; bytes at the peak."""
    sizes = np.full(_SHARDS, _OF_A_SHARD)
    started = time.process_time()
    order = Order(sizes.tolist(), "", seed=0, partitions=partitions, window=_OF_A_SHARD)
    order.refs(np.arange(batch_size, dtype=np.int64))
    first, seconds = time.process_time() - started, []
    for epoch in range(1, _BATCHES + 1):
        start = epoch * order.num_samples + (epoch * 4_999_999) // batch_size * batch_size
        started = time.process_time()
        order.refs(np.arange(start, start + batch_size, dtype=np.int64))
        seconds.append(time.process_time() - started)
    peak = peak_bytes()
    return {"first": first, "usual": float(np.median(seconds)), "slowest": max(seconds), "bytes": peak}


if __name__ == "__main__":
    print(json.dumps(_look_up(int(sys.argv[1]), int(sys.argv[2]))))
