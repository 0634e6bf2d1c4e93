"""Entries that are ranges of stored objects: members of tars, and images that a scan has copied together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.base.errors import FailedError
from pipeline.base.store.protocol import Store

_WINDOW_BYTES = 8_000_000  # of one request, unless a single image is larger
_GAP_BYTES = 65_536  # between two images: cheaper to read along than to ask again


class RangeReader:
    """Reads ``num_bytes`` from ``offset`` of ``file``; neighbours that follow each other come with one request.

    The objects are the product's own, so one that is missing or short is a FailedError: no fault of an image.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader."""
        return _Images(self._store, entries)


class _Images(Iterator[bytes | None]):
    """An iterator that survives an error of one item, which a generator would not."""

    def __init__(self, store: Store, entries: pa.Table) -> None:
        self._store = store
        self._files = entries["file"].to_pylist()
        self._etags = entries["etag"].to_pylist()
        self._starts = entries["offset"].to_numpy()
        self._stops = self._starts + entries["num_bytes"].to_numpy()
        self._breaks = _breaks(self._files, self._starts, self._stops)
        self._at, self._window, self._window_start, self._window_end = 0, b"", 0, 0

    def __next__(self) -> bytes:
        if self._at == len(self._files):
            raise StopIteration
        at, self._at = self._at, self._at + 1
        if at >= self._window_end:
            self._window_end = at  # nothing is held should the next line raise
            last = self._last_of_window(at)
            self._window = self._read(at, int(self._stops[last]))
            self._window_start, self._window_end = int(self._starts[at]), last + 1
        start = int(self._starts[at]) - self._window_start
        return self._window[start : int(self._stops[at]) - self._window_start]

    def _last_of_window(self, at: int) -> int:
        """The last entry that is read together with the one at *at*."""
        last = at
        while (
            last + 1 < len(self._files)
            and not self._breaks[last + 1]
            and self._stops[last + 1] - self._starts[at] <= _WINDOW_BYTES
        ):
            last += 1
        return last

    def _read(self, at: int, stop: int) -> bytes:
        start, where = int(self._starts[at]), f"{self._store.uri}/{self._files[at]}"
        try:
            data = self._store.read_range(self._files[at], start, stop - start, self._etags[at] or "")
        except FileNotFoundError:
            raise FailedError(f"{where} is gone", "give the same command again") from None
        if len(data) < stop - start:
            raise FailedError(f"{where} ends before byte {stop}", "vitpipe verify tells what else is damaged")
        return data


def _breaks(files: list[str], starts: np.ndarray, stops: np.ndarray) -> list[bool]:
    """Whether each entry is no close follower of the one before it."""
    other = [True, *(files[at] != files[at - 1] for at in range(1, len(files)))]
    gaps = np.concatenate([[0], starts[1:] - stops[:-1]]) if len(files) else np.zeros(0)
    return [bool(is_other or gap < 0 or gap > _GAP_BYTES) for is_other, gap in zip(other, gaps, strict=True)]
