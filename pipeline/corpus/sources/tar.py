"""The reader of tars: by ranges where they are plain, from front to back where they are gzipped."""

from __future__ import annotations

import posixpath
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.base.store.object_file import open_object
from pipeline.base.store.protocol import ObjectInfo, Store
from pipeline.corpus.sources.readers import (
    LARGEST_IMAGE,
    FileReader,
    InterleavedReader,
    ReadRange,
    Value,
    WindowedReader,
    as_file_error,
)
from pipeline.records.corpus import CorpusReader

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


_GZIPPED = r"(?i)\.(tgz|tar\.gz)$"


class TarReader:
    """Reads members of the tars of one store."""

    def __init__(self, store: Store) -> None:
        self._readers: dict[int, CorpusReader] = {0: FileReader(store), 1: _GzipReader(store)}

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader. Gzipped archives are inflated once for entries in the order of the archive."""
        numbers = pc.match_substring_regex(entries.column("file"), _GZIPPED).cast(pa.int8()).to_pylist()
        return InterleavedReader(numbers, entries, self._readers)


class _GzipReader:
    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        return WindowedReader(entries, _Inflating(self._store).load)


class _Inflating:
    """Keeps the archive that was read last open, so that the next window goes on where it stopped."""

    def __init__(self, store: Store) -> None:
        self._store, self._file = store, ""
        self._bytes: InflatedBytes | None = None

    def load(self, file: str, rows: Sequence[ReadRange]) -> Mapping[int, Value]:
        if self._bytes is None or self._file != file:
            if self._bytes is not None:
                self._bytes.close()
            self._bytes, self._file = InflatedBytes(self._store, ObjectInfo(file, -1, rows[0].etag)), file
        found: dict[int, Value] = {}
        for at in sorted(range(len(rows)), key=lambda at: rows[at].offset):
            num_bytes = min(rows[at].num_bytes, LARGEST_IMAGE)
            try:
                data = self._bytes.at(rows[at].offset, num_bytes)
                whole = len(data) == rows[at].num_bytes
                found[at] = data if whole else OSError(f"{file}: {self._bytes.damage or 'too large'}")
            except OSError as error:
                found[at] = error
        return found


BLOCK = 512
_LONGEST_NAME = 1 << 16
_LARGEST_KEPT = 4_000_000
_TRAILER = 1 << 20  # how far behind the end of an archive something else is looked for
_REGULAR = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_NAMES = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_WITHOUT_DATA = {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE}
_KINDS = {tarfile.LNKTYPE: "hard link", tarfile.SYMTYPE: "symbolic link", tarfile.FIFOTYPE: "fifo"}
_KINDS |= {tarfile.CHRTYPE: "device", tarfile.BLKTYPE: "device", tarfile.GNUTYPE_SPARSE: "sparse file"}


@dataclass(frozen=True)
class TarMember:
    """One member: its name, where its data is, and what it is when it is no regular file (``folder`` or another).

    ``data`` is there when it was asked for.
    """

    name: str
    offset: int
    num_bytes: int
    kind: str = ""
    data: bytes | None = None


@dataclass(frozen=True)
class TarDamage:
    """The archive is not whole at *offset*: ``tar-cut`` ends it; behind ``tar-damaged`` more members may follow."""

    offset: int
    reason: str
    detail: str


class _CutError(Exception):
    """The archive ends where more was promised."""


def scan(
    source: ArchiveBytes, start: int = 0, stop: int | None = None, *, keep: tuple[str, ...] = (), early: bool = False
) -> Iterator[TarMember | TarDamage]:
    """The members of the archive in bytes *start* to *stop* of *source* (None: to its end), and what is wrong with it.

    A member is told once its data is known to be there in full; with *early*, as soon as its header is read. Members
    whose names end with one of *keep* come with their data, up to 4 MB. Raises OSError when *source* cannot be read.
    """
    return _Scan(source, start, stop, keep, early).members()


class _Scan:
    def __init__(self, source: ArchiveBytes, start: int, stop: int | None, keep: tuple[str, ...], early: bool) -> None:
        self._source, self._at, self._stop, self._keep, self._early = source, start, stop, keep, early
        self._forget()

    def _forget(self) -> None:
        self._name, self._size, self._sparse = "", -1, False  # what extended headers say of the next member

    def members(self) -> Iterator[TarMember | TarDamage]:
        while True:
            begin = self._at
            try:
                header = self._bytes(BLOCK)
                if header == bytes(BLOCK):
                    if not self._more_follows():
                        return
                    raise ValueError("zeros where a header must stand")
                info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
                if info.type in _NAMES:
                    self._extend(info)
                    continue
                member = self._member(info)
                if self._early:
                    yield member
                if member.name.endswith(self._keep) and 0 < member.num_bytes <= _LARGEST_KEPT:
                    data = self._bytes(_padded(member.num_bytes))[: member.num_bytes]
                    member = replace(member, data=data)
                else:
                    self._skip(member.num_bytes)
                if not self._early:
                    yield member
            except _CutError:
                yield TarDamage(begin, "tar-cut", "the archive ends here, inside a member or without its end mark")
                return
            except (tarfile.HeaderError, ValueError):
                yield TarDamage(begin, "tar-damaged", "no header where one must stand, yet more behind")
                if not self._find_header(begin + BLOCK):
                    return

    def _bytes(self, length: int) -> bytes:
        if self._stop is not None and self._at + length > self._stop:
            raise _CutError
        data = self._source.at(self._at, length)
        if len(data) < length:
            raise _CutError
        self._at += length
        return data

    def _member(self, info: tarfile.TarInfo) -> TarMember:
        size = self._size if self._size >= 0 else info.size
        name, sparse = self._name or info.name, self._sparse
        self._forget()
        if size < 0:
            raise ValueError("a negative size")
        if info.isdir():
            return TarMember(name, self._at, 0, "folder")
        kind = "" if info.type in _REGULAR else _KINDS.get(info.type, "member of another kind")
        return TarMember(name, self._at, 0 if info.type in _WITHOUT_DATA else size, "sparse file" if sparse else kind)

    def _skip(self, size: int) -> None:
        """Go behind the data, whose last block must be there."""
        if size:
            self._at += _padded(size) - BLOCK
            self._bytes(BLOCK)

    def _extend(self, info: tarfile.TarInfo) -> None:
        if not 0 <= info.size <= _LONGEST_NAME:
            raise ValueError("an extended header of this size")
        text = self._bytes(_padded(info.size))[: info.size]
        if info.type == tarfile.GNUTYPE_LONGNAME:
            self._name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            fields = _pax_fields(text)
            self._name = fields.get(b"path", b"").decode("utf-8", "surrogateescape") or self._name
            self._size = int(fields.get(b"size", b"-1"))
            self._sparse = any(name.startswith(b"GNU.sparse") for name in fields)

    def _more_follows(self) -> bool:
        """Two blocks of zeros end an archive. What follows them all the same is lost to readers that stop there."""
        at, stop = self._at, self._at + _TRAILER
        stop = stop if self._stop is None else min(self._stop, stop)
        while at < stop:
            data = self._source.at(at, min(16 * BLOCK, stop - at))
            if data.strip(b"\0"):
                return True
            if not data:
                return False
            at += len(data)
        return False

    def _find_header(self, begin: int) -> bool:
        """Go to the next block that is a header; False when there is none."""
        self._at = begin
        self._forget()
        while True:
            try:
                header = self._bytes(BLOCK)
            except _CutError:
                return False
            if header[257:262] == b"ustar":
                try:
                    tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
                except (tarfile.HeaderError, ValueError):
                    continue
                self._at -= BLOCK
                return True


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _pax_fields(text: bytes) -> dict[bytes, bytes]:
    """The records of an extended header: ``length name=value newline``, the length being that of all of it."""
    fields: dict[bytes, bytes] = {}
    while text:
        length = int(text.split(b" ", 1)[0])
        record = text[:length]
        if not 0 < length <= len(text) or not record.endswith(b"\n"):
            raise ValueError("a record of another length")
        name, _, value = record[:-1].partition(b" ")[2].partition(b"=")
        fields[name] = value
        text = text[length:]
    return fields


def is_unsafe(name: str) -> bool:
    """Whether a member's *name* leads out of the archive."""
    return posixpath.isabs(name) or ".." in name.split("/") or "\0" in name
