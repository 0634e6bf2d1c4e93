"""The bytes of a shard: a USTAR archive whose bytes depend on its samples alone.

Our own writer, since ``webdataset.TarWriter`` loads torch (2.6 s and 220 MB in every task) and gives no offsets.
What it writes is checked against stock webdataset by ``interchange.py`` and the tests.
"""

from __future__ import annotations

import hashlib
from typing import BinaryIO

from pipeline.records.tar_header import member_header

_BLOCK = 512
_RECORD = 20 * _BLOCK  # what tar pads an archive to


class ShardTar:
    """Writes members to *file* as they come; nothing of them is kept. Owner, mode and time are fixed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a member; returns the offset of its data in the archive, in bytes."""
        self._write(member_header(name, len(data)))
        offset = self.num_bytes
        self._write(data)
        self._write(bytes(-len(data) % _BLOCK))
        return offset

    def close(self) -> str:
        """Write the two zero blocks and the padding that end an archive; returns its sha256."""
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self.num_bytes % _RECORD))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)
