"""What a store says of an object's content, and a running sum to compare with it.

S3 gives a checksum for some objects, an MD5 as ETag for most, and for those that were written in parts the MD5 of the
MD5s of the parts. A folder says nothing.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

SumKind = Literal["sha256", "crc32", "md5", "md5-parts"]


@dataclass(frozen=True)
class ContentSum:
    """A sum of one object's content, in hex. ``part_bytes``, for md5-parts: the parts' sizes.

    One size stands for all parts but the last; it is a guess when ``exact`` is false.
    """

    kind: SumKind
    value: str
    part_bytes: tuple[int, ...] = ()
    exact: bool = True


class RunningSum:
    """The sum that *expected* names, of bytes that come piece by piece."""

    def __init__(self, expected: ContentSum) -> None:
        self._expected = expected
        self._crc = 0
        self._digest = hashlib.sha256() if expected.kind == "sha256" else _md5()
        self._parts: list[bytes] = []
        self._left = self._size_of_part(0)

    def update(self, data: bytes | memoryview) -> None:
        """Add *data*."""
        kind = self._expected.kind
        if kind == "crc32":
            self._crc = zlib.crc32(data, self._crc)
        elif kind == "md5-parts":
            self._update_parts(memoryview(data))
        else:
            self._digest.update(data)

    def matches(self) -> bool:
        """True when the bytes so far are those of the sum."""
        return self._value() == self._expected.value

    def _value(self) -> str:
        kind = self._expected.kind
        if kind == "crc32":
            return f"{self._crc:08x}"
        if kind != "md5-parts":
            return self._digest.hexdigest()
        parts = self._parts
        if not parts or self._left != self._size_of_part(len(parts)):
            parts = [*parts, self._digest.digest()]
        return f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"

    def _update_parts(self, data: memoryview) -> None:
        while len(data):
            piece = data[: self._left]
            self._digest.update(piece)
            self._left -= len(piece)
            data = data[len(piece) :]
            if self._left == 0:
                self._parts.append(self._digest.digest())
                self._digest, self._left = _md5(), self._size_of_part(len(self._parts))

    def _size_of_part(self, number: int) -> int:
        sizes = self._expected.part_bytes
        return sizes[min(number, len(sizes) - 1)] if sizes else 0


def sum_matches(expected: ContentSum, pieces: Iterable[bytes]) -> bool:
    """True when *pieces*, joined, have the sum *expected*."""
    running = RunningSum(expected)
    for piece in pieces:
        running.update(piece)
    return running.matches()


def md5_hex(data: bytes) -> str:
    """Hex MD5 of *data*: what S3 has as ETag."""
    return _md5(data).hexdigest()


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)
