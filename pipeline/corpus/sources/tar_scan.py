"""The members of a tar that nobody vouches for: cut, damaged, hostile. Reads headers; data only where it is asked for.

``tarfile`` parses the 512 bytes of a header here; it does not walk the archive, since it gives up silently at a cut.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.corpus.sources.tar_bytes import ArchiveBytes

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
class Member:
    """One member: its name, where its data is, and what it is when it is no regular file (``folder`` or another).

    ``data`` is there when it was asked for.
    """

    name: str
    offset: int
    num_bytes: int
    kind: str = ""
    data: bytes | None = None


@dataclass(frozen=True)
class Break:
    """The archive is not whole at *offset*: ``tar-cut`` ends it; behind ``tar-damaged`` more members may follow."""

    offset: int
    reason: str
    detail: str


class _CutError(Exception):
    """The archive ends where more was promised."""


def scan(
    source: ArchiveBytes, start: int = 0, stop: int | None = None, *, keep: tuple[str, ...] = (), early: bool = False
) -> Iterator[Member | Break]:
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

    def members(self) -> Iterator[Member | Break]:
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
                yield Break(begin, "tar-cut", "the archive ends here, inside a member or without its end mark")
                return
            except (tarfile.HeaderError, ValueError):
                yield Break(begin, "tar-damaged", "no header where one must stand, yet more behind")
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

    def _member(self, info: tarfile.TarInfo) -> Member:
        size = self._size if self._size >= 0 else info.size
        name, sparse = self._name or info.name, self._sparse
        self._forget()
        if size < 0:
            raise ValueError("a negative size")
        if info.isdir():
            return Member(name, self._at, 0, "folder")
        kind = "" if info.type in _REGULAR else _KINDS.get(info.type, "member of another kind")
        return Member(name, self._at, 0 if info.type in _WITHOUT_DATA else size, "sparse file" if sparse else kind)

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
