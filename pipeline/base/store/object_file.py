"""A stored object as a seekable file, read by ranges: for parquet readers, which look at the end first."""

from __future__ import annotations

import io
from typing import BinaryIO

from pipeline.base.store.protocol import ObjectChangedError, Store


class _Ranges(io.RawIOBase):
    def __init__(self, store: Store, key: str, etag: str) -> None:
        info = store.head(key)
        if info is None:
            raise FileNotFoundError(f"{store.uri}/{key}")
        self._store, self._key, self._size, self._position = store, key, info.num_bytes, 0
        self._etag = etag

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        data = self._store.read_range(self._key, self._position, length, self._etag)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_object(store: Store, key: str, etag: str = "") -> BinaryIO:
    """The object at *key* as a seekable binary file. Raises FileNotFoundError when there is none.

    With *etag*, raises ObjectChangedError when it has another one: a file when it is opened, an object of a bucket at
    any read.
    """
    path = store.local_path(key)
    if path is None:
        return io.BufferedReader(_Ranges(store, key, etag), buffer_size=1 << 20)
    info = store.head(key) if etag else None
    if info is not None and info.etag != etag:
        raise ObjectChangedError(f"{store.uri}/{key} has changed")
    return path.open("rb")
