"""The journal: which objects are copied already, read back by a stager that goes on.

It consists of parts of rows, one series for each attempt.

Objects are begun in the order of their keys and end nearly in it: at most ``WINDOW`` are under way. So each series
can be read as a sorted one with a heap of that size, whatever its length.

An object that is noted and has to be copied again, as its source has changed, is first noted as void: should the stager
be killed between its put and its note, and the source be what it was before, the old note would vouch for other bytes.
"""

from __future__ import annotations

import heapq
import io
import itertools
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import astuple, replace
from typing import Generic, TypeVar

import pyarrow as pa

from pipeline.base.store.protocol import ObjectInfo, Store
from pipeline.corpus.staging.manifest import DATA, JOURNAL, STAGED_SCHEMA, CopiedObject, CopyEntry

WINDOW = 2048  # objects that are under way at most
_FLUSH_SECONDS = 2.0
_FLUSH_ROWS = 20_000
_VOID = "void"  # the proof of a row that takes back what any attempt noted of that object in that state
_AHEAD = 1_000  # entries that are compared together, so that what they make void is one part
Keyed = TypeVar("Keyed", CopiedObject, ObjectInfo)


class StageJournal:
    """Collects copied objects and stores them every two seconds. Threads may share it."""

    def __init__(self, target: Store) -> None:
        self._target, self._name = target, f"{JOURNAL}{uuid.uuid4().hex}"
        self._rows: list[CopiedObject] = []
        self._parts, self._flushed = 0, time.monotonic()
        self._guard = threading.Lock()

    def add(self, copied: CopiedObject) -> None:
        """Note that *copied* is stored in the target, for good."""
        with self._guard:
            self._rows.append(copied)
            if len(self._rows) >= _FLUSH_ROWS or time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._flush()

    def flush(self) -> None:
        """Store what was noted."""
        with self._guard:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [list(column) for column in zip(*map(astuple, self._rows), strict=True)]
            buffer = io.BytesIO()
            with pa.ipc.new_stream(buffer, STAGED_SCHEMA) as writer:
                writer.write_table(pa.table(columns, schema=STAGED_SCHEMA))
            self._target.put(f"{self._name}-{self._parts:08d}.arrow", buffer.getvalue())
            self._parts += 1
            self._rows = []
        self._flushed = time.monotonic()


def read_journal(target: Store) -> Iterator[CopiedObject]:
    """What all attempts noted, in the order of the keys; a key can come more than once, and void rows among them."""
    keys = [info.key for info in target.list(JOURNAL)]
    attempts = [list(group) for _, group in itertools.groupby(keys, key=lambda key: key.rpartition("-")[0])]
    return heapq.merge(*(_sorted(_rows_of(target, parts)) for parts in attempts), key=_key)


def pending_entries(entries: Iterator[CopyEntry], target: Store) -> Iterator[CopyEntry | CopiedObject]:
    """*entries*, each replaced by its copy if *target* has one in that very state.

    That is: it is noted as copied in the listed state, the note is not void, and an object of its size is there. The
    notes of an entry that has to be copied are made void before.
    """
    done, present, voids = _KeyCursor(read_journal(target)), _KeyCursor(_below_data(target)), StageJournal(target)
    while ahead := list(itertools.islice(entries, _AHEAD)):
        pending: list[CopyEntry | CopiedObject] = []
        for entry in ahead:
            valid = _valid(done.rows_of(entry.key))
            copied = valid.get((entry.num_bytes, entry.etag))
            is_present = any(info.num_bytes == entry.num_bytes for info in present.rows_of(entry.key))
            pending.append(copied if copied and is_present else entry)
            if pending[-1] is entry:
                for note in valid.values():
                    voids.add(replace(note, sha256="", proof=_VOID))
        voids.flush()
        yield from pending


def _valid(noted: list[CopiedObject]) -> dict[tuple[int, str], CopiedObject]:
    """By size and etag, the notes of one object that are not void; whichever came first."""
    void = {(note.num_bytes, note.etag) for note in noted if note.proof == _VOID}
    return {state: note for note in noted if (state := (note.num_bytes, note.etag)) not in void}


def _below_data(target: Store) -> Iterator[ObjectInfo]:
    for info in target.list(DATA):
        yield ObjectInfo(info.key.removeprefix(DATA), info.num_bytes, info.etag)


class _KeyCursor(Generic[Keyed]):
    """Walks sorted rows beside ascending keys."""

    def __init__(self, rows: Iterator[Keyed]) -> None:
        self._rows: Iterator[Keyed] = rows
        self._next: Keyed | None = next(rows, None)

    def rows_of(self, key: str) -> list[Keyed]:
        """The rows of *key*, which is larger than the keys before it."""
        matches = []
        while self._next is not None and self._next.key <= key:
            if self._next.key == key:
                matches.append(self._next)
            self._next = next(self._rows, None)
        return matches


def _rows_of(target: Store, parts: list[str]) -> Iterator[CopiedObject]:
    for part in parts:
        with pa.ipc.open_stream(target.read(part)) as reader:
            for row in zip(*(column.to_pylist() for column in reader.read_all().columns), strict=True):
                yield CopiedObject(*row)


def _sorted(rows: Iterator[CopiedObject]) -> Iterator[CopiedObject]:
    heap: list[tuple[str, int, CopiedObject]] = []
    for number, copied in enumerate(rows):
        heapq.heappush(heap, (copied.key, number, copied))
        if len(heap) > 2 * WINDOW:
            yield heapq.heappop(heap)[2]
    while heap:
        yield heapq.heappop(heap)[2]


def _key(copied: CopiedObject) -> str:
    return copied.key
