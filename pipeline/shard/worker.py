"""What a Ray worker does with one row of the plan, and how the plan reaches it. Imports no ray.

Entries travel through the store, not through rows: the driver holds only a ``ShardRef`` for each shard. What runs on
a worker is pickled with its arguments, so it holds nothing that is open.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.errors import DamageError, VitpipeError
from pipeline.base.store.protocol import Store
from pipeline.records.corpus import CorpusReader
from pipeline.records.dataset import WORK, ShardEntry
from pipeline.shard.plan import PlannedShard, table_bytes, table_from_bytes
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.verify import check_shard
from pipeline.shard.writer import ExpectedDigests, find_undamaged, find_written, write_shard

_PART_BYTES = 32_000_000  # of the plan in one object, and one shard more
_NAME_DIGITS = 32  # hex digits of a part's digest in its name
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True)
class ShardRef:
    """Where the entries of a shard are: *num_bytes* of the plan's part at *key*, from *offset*.

    ``expected``: the digests that it must have, where a dataset is made again; None for a new one.
    """

    number: int
    key: str
    offset: int
    num_bytes: int
    sha256: str
    expected: ExpectedDigests | None = None


def write_plan(shards: Iterable[PlannedShard], target: Store) -> list[ShardRef]:
    """Write the plan below ``work/``, in parts of many shards; what stays in memory is a line per shard."""
    refs: list[ShardRef] = []
    part, refs_of_part = bytearray(), list[ShardRef]()
    for shard in shards:
        data = table_bytes(shard.entries)
        refs_of_part.append(ShardRef(shard.number, "", len(part), len(data), sha256_hex(data)))
        part += data
        if len(part) >= _PART_BYTES:
            refs += _put_part(bytes(part), refs_of_part, target)
            part, refs_of_part = bytearray(), []
    if refs_of_part:
        refs += _put_part(bytes(part), refs_of_part, target)
    return refs


def _put_part(part: bytes, refs: list[ShardRef], target: Store) -> list[ShardRef]:
    """Named by its content: another writer of the dataset, whose copy of the source has other etags, has its own."""
    key = f"{WORK}/plan-{sha256_hex(part)[:_NAME_DIGITS]}.bin"
    target.put(key, part)
    return [replace(ref, key=key) for ref in refs]


class WriteShard:
    """Writes the shard of one row: a ``ShardRef`` as a dict."""

    def __init__(self, reader: CorpusReader, target: Store, recipe: ShardRecipe, format_fingerprint: str) -> None:
        self._reader, self._target, self._recipe, self._format = reader, target, recipe, format_fingerprint

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the shard of *row*, unless it is there already; a WrittenShard as a row."""
        number, plan = int(row["number"]), fingerprint([self._format, row["sha256"]])
        expected = ExpectedDigests(**row["expected"]) if row["expected"] else None
        if expected is None:
            written = find_written(number, self._target, plan)
        else:
            written = find_undamaged(number, self._target, expected)
        if written is None:
            shard = PlannedShard(number, self._entries(row))
            written = write_shard(shard, self._reader, self._target, plan, self._recipe, expected)
        return {
            "number": written.number,
            "entry": written.entry.model_dump_json() if written.entry else "",
            "rejects": json.dumps([asdict(reject) for reject in written.rejects]),
            "statistics": written.statistics.to_json(),
        }

    def _entries(self, row: dict[str, Any]) -> pa.Table:
        data = self._target.read_range(row["key"], int(row["offset"]), int(row["num_bytes"]))
        if sha256_hex(data) != row["sha256"]:
            raise DamageError(f"{self._target.uri}/{row['key']}: not the plan that was written there", "shard again")
        return table_from_bytes(data)


class VerifyShard:
    """Compares the bytes of one shard and of its index with its entry."""

    def __init__(self, target: Store) -> None:
        self._target = target

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The problems of the shard of *row*, one a line."""
        entry = ShardEntry.model_validate_json(row["entry"])
        return {"name": entry.name, "problems": "\n".join(check_shard(self._target, entry, "bytes"))}


class ErrorAsValue:
    """Runs *work* on a row and returns an error that concerns the user as a row: Ray hands on only its text."""

    def __init__(self, work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row that *work* returns, or ``error``: JSON of the error's class, message and way out."""
        try:
            return self._work(row)
        except VitpipeError as error:
            return {"error": json.dumps([type(error).__name__, error.message, error.way_out])}
        except OSError as error:  # of what is written: what is read is rejected
            message, again = f"a shard could not be written: {error.strerror or error}", "give the same command again"
            way_out = f"make room, then {again}" if error.errno in _NO_ROOM else again
            return {"error": json.dumps(["FailedError", message, way_out])}
