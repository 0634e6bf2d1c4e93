"""The bytes of an archive by position: by ranges where it is plain, from front to back where it is gzipped."""

from __future__ import annotations

import zlib
from typing import BinaryIO, Protocol

from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.base.store import ObjectInfo, Store
from pipeline.base.store.reading import open_object
from pipeline.corpus.sources.reading import as_file_error

_BLOCK_OF_A_BUCKET = 4 << 20  # one request for some forty images
_BLOCK_OF_A_DISK = 16 << 10
_COMPRESSED = 256 << 10
_SKIPPED = 1 << 20
_GZIP = 31  # zlib's word for: with the header of gzip


class ArchiveBytes(Protocol):
    """Bytes of an archive by position."""

    def at(self, offset: int, length: int) -> bytes:
        """*length* bytes from *offset*; fewer where the archive ends. Raises OSError when it cannot be read."""


class RangedBytes:
    """A plain archive. Reads in blocks, so that headers that stand close together cost one request."""

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store, self._info = store, info
        self._block = _BLOCK_OF_A_DISK if store.local_path(info.key) is not None else _BLOCK_OF_A_BUCKET
        self._start, self._held = 0, b""

    def at(self, offset: int, length: int) -> bytes:
        """See ArchiveBytes."""
        length = max(0, min(length, self._info.num_bytes - offset))
        if not self._start <= offset <= offset + length <= self._start + len(self._held):
            try:
                wanted = max(length, self._block)
                self._held = self._store.read_range(self._info.key, offset, wanted, self._info.etag)
            except (StoreAccessError, FailedError) as error:
                raise as_file_error(error, self._info.key) from None
            self._start = offset
        return self._held[offset - self._start : offset - self._start + length]


class InflatedBytes:
    """A gzipped archive; *offset* counts inflated bytes. To go back is to begin again.

    ``damage`` says why the stream ended before its end: it was ``CUT``, or zlib cannot go on.
    """

    CUT = "the gzip stream is cut"

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store, self._info = store, info
        self._file: BinaryIO | None = None
        self._start, self._held, self._waiting, self.damage = 0, b"", b"", ""
        self._inflate = zlib.decompressobj(_GZIP)

    def at(self, offset: int, length: int) -> bytes:
        """See ArchiveBytes."""
        if offset < self._start:
            self._restart()
        while self._start + len(self._held) < offset:
            self._start, self._held = self._start + len(self._held), b""
            if not self._more(_SKIPPED):
                return b""
        self._held, self._start = self._held[offset - self._start :], offset
        while len(self._held) < length and self._more(max(length - len(self._held), 1 << 16)):
            pass
        return self._held[:length]

    def close(self) -> None:
        """Close the compressed file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _restart(self) -> None:
        self.close()
        self._inflate, self._waiting = zlib.decompressobj(_GZIP), b""
        self._start, self._held, self.damage = 0, b"", ""

    def _more(self, length: int) -> bool:
        """Inflate up to *length* bytes more; False at the end."""
        while not self.damage:
            if self._inflate.eof:  # another member may follow, as pigz and `cat a.gz b.gz` make them
                self._waiting = self._inflate.unused_data.lstrip(b"\0") or self._read().lstrip(b"\0")
                if not self._waiting:
                    return False
                self._inflate = zlib.decompressobj(_GZIP)
            if not self._waiting:
                self._waiting = self._read()
            if not self._waiting:
                self.damage = self.CUT
                return False
            before = self._inflate.copy()
            try:
                data = self._inflate.decompress(self._waiting, length)
            except zlib.error:
                if length == 1:
                    self.damage = "the gzip stream is damaged"
                    return False
                self._inflate = before  # what came before the damage is not lost: it is taken in small steps
                length = 512 if length > 512 else 1
                continue
            self._waiting = self._inflate.unconsumed_tail
            if data:
                self._held += data
                return True
        return False

    def _read(self) -> bytes:
        try:
            if self._file is None:
                self._file = open_object(self._store, self._info.key, self._info.etag)
            return self._file.read(_COMPRESSED)
        except (StoreAccessError, FailedError) as error:
            raise as_file_error(error, self._info.key) from None
