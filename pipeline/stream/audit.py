"""What each rank was handed out, as a log, and the proof from it that every sample was seen exactly once per epoch.

::

    runs/<name>/audit/<attempt>/rank-00000/start.json            where the attempt started from: position, world size
                                           part-00000000.parquet  one row for each sample, flushed before a card

An attempt that starts from a checkpoint makes void what earlier attempts did from its position on: those updates were
thrown away. What is left of all attempts is the history that the newest weights have seen.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.disk_table import read_parquet
from pipeline.base.errors import DamageError
from pipeline.base.store.protocol import Store
from pipeline.base.world import World
from pipeline.records.record import Record, parse_record
from pipeline.records.run import run_prefix
from pipeline.stream.order import Ints

COLUMNS = ("step", "position", "dataset", "epoch", "shard", "row", "skipped")
SCHEMA = pa.schema([(name, pa.int64()) for name in COLUMNS])
_ENCODING = dict.fromkeys(COLUMNS, "DELTA_BINARY_PACKED")
_PART_ROWS = 65_536


class AuditStart(Record):
    """The beginning of a rank's log."""

    schema_version: Literal[1] = 1
    attempt: str
    position: int
    rank: int
    world_size: int


class AuditLog:
    """The log of one rank in one attempt of *run*. Columns are int64; ``dataset`` counts the datasets of a mixture."""

    def __init__(self, store: Store, run: str, attempt: str, world: World, position: int) -> None:
        self._store, self._prefix = store, f"{audit_prefix(run)}{attempt}/rank-{world.rank:05d}"
        self._rows: list[Ints] = []
        self._num_rows = self._num_parts = 0
        start = AuditStart(attempt=attempt, position=position, rank=world.rank, world_size=world.size)
        store.put(f"{self._prefix}/start.json", start.to_json())

    def add(self, step: int, positions: Ints, origins: Ints) -> None:
        """Batch *step* was handed out: *positions* (B,) and *origins* (5, B), see ``BatchArrays``."""
        self._rows.append(np.vstack([np.full_like(positions, step), positions, origins]))
        self._num_rows += len(positions)
        if self._num_rows >= _PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Store what was added. To be called before the card of a checkpoint is written, and at the end."""
        if not self._rows:
            return
        columns = np.concatenate(self._rows, axis=1)
        table = pa.table(dict(zip(COLUMNS, columns, strict=True)), schema=SCHEMA)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", use_dictionary=False, column_encoding=_ENCODING)
        self._store.put(f"{self._prefix}/part-{self._num_parts:08d}.parquet", buffer.getvalue())
        self._num_parts += 1
        self._rows, self._num_rows = [], 0


def audit_prefix(run: str) -> str:
    """The prefix of the logs of *run*, with its slash."""
    return f"{run_prefix(run)}/audit/"


class RankAuditLog:
    """The stored log of one rank in one attempt, read from its start, a part at a time."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        key = f"{prefix}/start.json"
        self.start = parse_record(AuditStart, store.read(key), key)
        self._blocks = (self._block(key) for key in self._keys())
        self._left: Ints = np.empty((len(COLUMNS), 0), np.int64)

    def until(self, position: int) -> Ints:
        """The next rows, in the order of the log, up to the first at *position* or later: int64 (7, n)."""
        taken = []
        while True:
            beyond = np.flatnonzero(self._left[1] >= position)
            cut = int(beyond[0]) if len(beyond) else self._left.shape[1]
            taken.append(self._left[:, :cut])
            self._left = self._left[:, cut:]
            if self._left.shape[1]:
                break
            block = next(self._blocks, None)
            if block is None:
                break
            self._left = block
        return np.concatenate(taken, axis=1)

    def last_step(self) -> int:
        """Of the newest batch that is logged; -1 when there is none."""
        keys = self._keys()
        return int(self._block(keys[-1])[0].max(initial=-1)) if keys else -1

    def _keys(self) -> list[str]:
        return [info.key for info in self._store.list(f"{self._prefix}/part-")]

    def _block(self, key: str) -> Ints:
        try:
            table = read_parquet(self._store.read(key))
            block: Ints = np.vstack([table[name].to_numpy() for name in COLUMNS]).astype(np.int64)
        except (pa.ArrowException, OSError, KeyError, ValueError):
            raise DamageError(f"{key} cannot be read", "the audit of this run is lost") from None
        return block


def attempt_logs(store: Store, run: str) -> dict[str, list[RankAuditLog]]:
    """The logs of every attempt, by attempt and rank. Attempts that ended before they logged anything are left out."""
    logs: dict[str, list[RankAuditLog]] = {}
    for info in store.list(audit_prefix(run)):
        folder, _, name = info.key.rpartition("/")
        if name == "start.json":
            log = RankAuditLog(store, folder)
            logs.setdefault(log.start.attempt, []).append(log)
    return dict(sorted(logs.items()))
