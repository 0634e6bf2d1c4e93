"""Members of tars that nobody vouches for, plain or gzipped: ``scan_tar`` lists them, ``TarReader`` reads their bytes.

Nothing is unpacked. Plain archives are read by ranges, gzipped ones from front to back. Damage costs the members that
it hits: the scan goes on at the next header behind it. ``tarfile`` parses the 512 bytes of a header; it does
not walk the archive, since it gives up silently at a cut.
"""

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
    ReadResult,
    WindowedReader,
    as_file_error,
)
from pipeline.records.corpus import CorpusReader

_BLOCK = 512  # bytes: a tar consists of such blocks
_LONGEST_NAME = 1 << 16  # bytes of an extended header
_LARGEST_DATA = 4_000_000  # bytes of a member that comes with its data
_TRAILER = 1 << 20  # bytes behind the end of an archive in which something else is looked for
_REGULAR = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_NAMES = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_WITHOUT_DATA = {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE}
_KINDS = {tarfile.LNKTYPE: "hard link", tarfile.SYMTYPE: "symbolic link", tarfile.FIFOTYPE: "fifo"}
_KINDS |= {tarfile.CHRTYPE: "device", tarfile.BLKTYPE: "device", tarfile.GNUTYPE_SPARSE: "sparse file"}

_BUCKET_BLOCK_BYTES = 4 << 20  # one request for some forty images
_DISK_BLOCK_BYTES = 16 << 10
_COMPRESSED_BYTES = 256 << 10  # of one read of a gzipped archive
_SKIP_BYTES = 1 << 20  # inflated at a time on the way to a later offset
_GZIP_WINDOW = 31  # zlib's wbits for the largest window with the header of gzip
_GZIPPED = r"(?i)\.(tgz|tar\.gz)$"


class ArchiveBytes(Protocol):
    """Bytes of an archive by position."""

    def read_at(self, offset: int, length: int) -> bytes:
        """*length* bytes from *offset*; fewer where the archive ends. Raises OSError when it cannot be read."""


@dataclass(frozen=True)
class TarMember:
    """One member: its name, the offset of its data, and its kind when it is no regular file (``folder``, a link, ...).

    ``data`` is there when ``scan_tar`` was to bring it along.
    """

    name: str
    offset: int
    num_bytes: int
    kind: str = ""
    data: bytes | None = None


@dataclass(frozen=True)
class TarDamage:
    """The archive is damaged at *offset*: ``tar-cut`` ends it; behind ``tar-damaged`` more members may follow."""

    offset: int
    reason: str
    detail: str


def scan_tar(
    source: ArchiveBytes,
    start: int = 0,
    stop: int | None = None,
    *,
    data_of: tuple[str, ...] = (),
    early: bool = False,
) -> Iterator[TarMember | TarDamage]:
    """The members of the archive in bytes *start* to *stop* of *source* (None: to its end), and what is wrong with it.

    A member is given once its data is known to be there in full; with *early*, as soon as its header is read. Members
    whose names end with one of *data_of* come with their data, up to 4 MB. Raises OSError when *source* cannot be read.
    """
    return _Scan(source, start, stop, data_of, early).members()


def is_unsafe(name: str) -> bool:
    """Whether a member's *name* leads out of the archive."""
    return posixpath.isabs(name) or ".." in name.split("/") or "\0" in name


class _CutError(Exception):
    """The archive ends where more was promised."""


class _Scan:
    def __init__(
        self, source: ArchiveBytes, start: int, stop: int | None, data_of: tuple[str, ...], early: bool
    ) -> None:
        self._source, self._offset, self._stop, self._data_of, self._early = source, start, stop, data_of, early
        self._forget()

    def _forget(self) -> None:
        self._name, self._size, self._sparse = "", -1, False  # what extended headers say of the next member

    def members(self) -> Iterator[TarMember | TarDamage]:
        while True:
            begin = self._offset
            try:
                header = self._read(_BLOCK)
                if header == bytes(_BLOCK):
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
                if member.name.endswith(self._data_of) and 0 < member.num_bytes <= _LARGEST_DATA:
                    data = self._read(_padded(member.num_bytes))[: member.num_bytes]
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
                if not self._find_header(begin + _BLOCK):
                    return

    def _read(self, length: int) -> bytes:
        if self._stop is not None and self._offset + length > self._stop:
            raise _CutError
        data = self._source.read_at(self._offset, length)
        if len(data) < length:
            raise _CutError
        self._offset += length
        return data

    def _member(self, info: tarfile.TarInfo) -> TarMember:
        size = self._size if self._size >= 0 else info.size
        name, sparse = self._name or info.name, self._sparse
        self._forget()
        if size < 0:
            raise ValueError("a negative size")
        if info.isdir():
            return TarMember(name, self._offset, 0, "folder")
        kind = "" if info.type in _REGULAR else _KINDS.get(info.type, "member of another kind")
        num_bytes = 0 if info.type in _WITHOUT_DATA else size
        return TarMember(name, self._offset, num_bytes, "sparse file" if sparse else kind)

    def _skip(self, size: int) -> None:
        """Go behind the data, whose last block must be there."""
        if size:
            self._offset += _padded(size) - _BLOCK
            self._read(_BLOCK)

    def _extend(self, info: tarfile.TarInfo) -> None:
        """Read an extended header: the long name, size or sparse layout of the member behind it."""
        if not 0 <= info.size <= _LONGEST_NAME:
            raise ValueError("an extended header of this size")
        text = self._read(_padded(info.size))[: info.size]
        if info.type == tarfile.GNUTYPE_LONGNAME:
            self._name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            fields = _pax_fields(text)
            self._name = fields.get(b"path", b"").decode("utf-8", "surrogateescape") or self._name
            self._size = int(fields.get(b"size", b"-1"))
            self._sparse = any(name.startswith(b"GNU.sparse") for name in fields)

    def _more_follows(self) -> bool:
        """Two blocks of zeros end an archive. What follows them all the same is lost to readers that stop there."""
        offset, stop = self._offset, self._offset + _TRAILER
        stop = stop if self._stop is None else min(self._stop, stop)
        while offset < stop:
            data = self._source.read_at(offset, min(16 * _BLOCK, stop - offset))
            if data.strip(b"\0"):
                return True
            if not data:
                return False
            offset += len(data)
        return False

    def _find_header(self, begin: int) -> bool:
        """Go to the next block that is a header; False when there is none."""
        self._offset = begin
        self._forget()
        while True:
            try:
                header = self._read(_BLOCK)
            except _CutError:
                return False
            if header[257:262] == b"ustar":
                try:
                    tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
                except (tarfile.HeaderError, ValueError):
                    continue
                self._offset -= _BLOCK
                return True


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


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


class RangedBytes:
    """A plain archive. Reads in blocks, so that headers that are close together cost one request."""

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store, self._info = store, info
        self._min_bytes = _DISK_BLOCK_BYTES if store.local_path(info.key) is not None else _BUCKET_BLOCK_BYTES
        self._start, self._block = 0, b""

    def read_at(self, offset: int, length: int) -> bytes:
        """See ArchiveBytes."""
        length = max(0, min(length, self._info.num_bytes - offset))
        if not self._start <= offset <= offset + length <= self._start + len(self._block):
            try:
                num_bytes = max(length, self._min_bytes)
                self._block = self._store.read_range(self._info.key, offset, num_bytes, self._info.etag)
            except (StoreAccessError, FailedError) as error:
                raise as_file_error(error, self._info.key) from None
            self._start = offset
        return self._block[offset - self._start : offset - self._start + length]


class InflatedBytes:
    """A gzipped archive; offsets count inflated bytes. To go back is to begin again.

    ``damage`` says why the stream ended before its end: it was ``CUT``, or zlib cannot go on.
    """

    CUT = "the gzip stream is cut"

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store, self._info = store, info
        self._file: BinaryIO | None = None
        self._start, self._inflated, self._compressed, self.damage = 0, b"", b"", ""
        self._inflate = zlib.decompressobj(_GZIP_WINDOW)

    def read_at(self, offset: int, length: int) -> bytes:
        """See ArchiveBytes."""
        if offset < self._start:
            self._restart()
        while self._start + len(self._inflated) < offset:
            self._start, self._inflated = self._start + len(self._inflated), b""
            if not self._inflate_more(_SKIP_BYTES):
                return b""
        self._inflated, self._start = self._inflated[offset - self._start :], offset
        while len(self._inflated) < length and self._inflate_more(max(length - len(self._inflated), 1 << 16)):
            pass
        return self._inflated[:length]

    def close(self) -> None:
        """Close the compressed file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _restart(self) -> None:
        self.close()
        self._inflate, self._compressed = zlib.decompressobj(_GZIP_WINDOW), b""
        self._start, self._inflated, self.damage = 0, b"", ""

    def _inflate_more(self, length: int) -> bool:
        """Inflate up to *length* bytes more; False at the end."""
        while not self.damage:
            if self._inflate.eof:  # another member may follow, as pigz and `cat a.gz b.gz` make them
                self._compressed = self._inflate.unused_data.lstrip(b"\0") or self._read_file().lstrip(b"\0")
                if not self._compressed:
                    return False
                self._inflate = zlib.decompressobj(_GZIP_WINDOW)
            if not self._compressed:
                self._compressed = self._read_file()
            if not self._compressed:
                self.damage = self.CUT
                return False
            before = self._inflate.copy()
            try:
                data = self._inflate.decompress(self._compressed, length)
            except zlib.error:
                if length == 1:
                    self.damage = "the gzip stream is damaged"
                    return False
                self._inflate = before  # what came before the damage is not lost: it is taken in small steps
                length = 512 if length > 512 else 1
                continue
            self._compressed = self._inflate.unconsumed_tail
            if data:
                self._inflated += data
                return True
        return False

    def _read_file(self) -> bytes:
        try:
            if self._file is None:
                self._file = open_object(self._store, self._info.key, self._info.etag)
            return self._file.read(_COMPRESSED_BYTES)
        except (StoreAccessError, FailedError) as error:
            raise as_file_error(error, self._info.key) from None


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
        return WindowedReader(entries, _OpenArchive(self._store).load)


class _OpenArchive:
    """Leaves the archive that was read last open, so that the next window goes on where the last one stopped."""

    def __init__(self, store: Store) -> None:
        self._store, self._file = store, ""
        self._bytes: InflatedBytes | None = None

    def load(self, file: str, rows: Sequence[ReadRange]) -> Mapping[int, ReadResult]:
        if self._bytes is None or self._file != file:
            if self._bytes is not None:
                self._bytes.close()
            self._bytes, self._file = InflatedBytes(self._store, ObjectInfo(file, -1, rows[0].etag)), file
        results: dict[int, ReadResult] = {}
        for index in sorted(range(len(rows)), key=lambda index: rows[index].offset):
            num_bytes = min(rows[index].num_bytes, LARGEST_IMAGE)
            try:
                data = self._bytes.read_at(rows[index].offset, num_bytes)
                is_complete = len(data) == rows[index].num_bytes
                results[index] = data if is_complete else OSError(f"{file}: {self._bytes.damage or 'too large'}")
            except OSError as error:
                results[index] = error
        return results
