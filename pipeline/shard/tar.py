"""The bytes of a shard: a USTAR archive whose bytes depend on its samples alone.

Our own writer, since ``webdataset.TarWriter`` loads torch (2.6 s and 220 MB in every task) and gives no offsets.
What it writes is checked against stock webdataset by ``interchange.py`` and the tests.
"""

from __future__ import annotations

import io
import tarfile

_BLOCK = 512
_RECORD = 20 * _BLOCK  # what tar pads an archive to


class ShardTar:
    """Collects members and gives the archive. Owner, mode and time are fixed."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()

    def add(self, name: str, data: bytes) -> int:
        """Append a member; returns the offset of its data in the archive, in bytes."""
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = len(data), 0, 0o444
        self._buffer.write(member.tobuf(format=tarfile.USTAR_FORMAT))
        offset = self._buffer.tell()
        self._buffer.write(data)
        self._buffer.write(bytes(-len(data) % _BLOCK))
        return offset

    def close(self) -> bytes:
        """The whole archive, with the two zero blocks and the padding that end one."""
        self._buffer.write(bytes(2 * _BLOCK))
        self._buffer.write(bytes(-self._buffer.tell() % _RECORD))
        return self._buffer.getvalue()


def member_header(name: str, num_bytes: int) -> bytes:
    """The 512 bytes that stand before a member's data: what a reader can compare with."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = num_bytes, 0, 0o444
    return member.tobuf(format=tarfile.USTAR_FORMAT)
