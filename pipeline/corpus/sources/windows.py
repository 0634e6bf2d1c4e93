"""Reading what has to be read from front to back: a bounded window of entries at a time, sorted inside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.sources.reading import Want, wants
from pipeline.records.corpus import CorpusReader

_ROWS = 2_048
_BYTES = 32_000_000

Value = bytes | None | OSError
Load = Callable[[str, Sequence[Want]], Mapping[int, Value]]


class Windows(Iterator[bytes | None]):
    """Gives the bytes of each row in the order asked for, and goes on after the error of one.

    *load* gets a file and the wanted rows of it, and returns what it found by their positions in that list.
    """

    def __init__(self, entries: pa.Table, load: Load) -> None:
        self._rows, self._load = wants(entries), load
        self._next: Want | None = next(self._rows, None)
        self._found: deque[Value] = deque()

    def __next__(self) -> bytes | None:
        if not self._found:
            self._found.extend(self._read_window())
        if not self._found:
            raise StopIteration
        value = self._found.popleft()
        if isinstance(value, OSError):
            raise value
        return value

    def _read_window(self) -> list[Value]:
        window: list[Want] = []
        num_bytes = 0
        while self._next is not None and len(window) < _ROWS and (num_bytes < _BYTES or not window):
            window.append(self._next)
            num_bytes += self._next.num_bytes
            self._next = next(self._rows, None)
        found: list[Value] = [None] * len(window)
        for file in dict.fromkeys(want.file for want in window):
            places = [at for at, want in enumerate(window) if want.file == file]
            for at, value in self._load(file, [window[at] for at in places]).items():
                found[places[at]] = value
        return found


class InTurns(Iterator[bytes | None]):
    """Rows of several readers: *numbers* says whose each row of *entries* is. Each gets its rows in their order."""

    def __init__(self, numbers: Sequence[int], entries: pa.Table, readers: Mapping[int, CorpusReader]) -> None:
        array = pa.array(numbers, pa.int64())
        self._numbers = iter(numbers)
        self._parts = {number: readers[number].read(entries.filter(pc.equal(array, number))) for number in set(numbers)}

    def __next__(self) -> bytes | None:
        return next(self._parts[next(self._numbers)])
