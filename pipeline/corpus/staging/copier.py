"""``Copier``: copies one object, pinned to its listed state, compared with its store's checksum, with its sha256.

Three things may be wrong with it. It changed since it was listed: all of it is taken in its new state, once. Its bytes
do not have the checksum that its store gives: it is read again, once. It cannot be read: that is tried for a while.
What is still wrong then is rejected by name. Errors of the target, and denied access, end the stage instead.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from pipeline.base.errors import FailedError, InterruptedRunError, StoreAccessError
from pipeline.base.retry import RetryPolicy, with_retry
from pipeline.base.store.protocol import ContentSum, KeyRefusedError, ObjectChangedError, PartsWriter, RunningSum, Store
from pipeline.corpus.staging.manifest import DATA, CopiedObject, CopyEntry
from pipeline.corpus.staging.recipe import StageRecipe
from pipeline.records.corpus import Reject

Result = TypeVar("Result")

_MAX_PARTS = 10_000  # of an object on S3, by its own limit


def num_threads(recipe: StageRecipe) -> int:
    """Threads that copy: while some of them read, as many write."""
    return 2 * recipe.parallel


class NotCopiedError(Exception):
    """This object cannot be copied; the others can."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Copier:
    """Copies objects; ``copy`` is called from many threads. Closes its own threads at the end of a ``with`` block."""

    def __init__(self, source: Store, target: Store, recipe: StageRecipe, stopped: threading.Event) -> None:
        self._source, self._target, self._recipe = source, target, recipe
        self._retry = RetryPolicy(
            recipe.patience_seconds,
            stopped=stopped,
            permanent=(KeyRefusedError,),
            denied_seconds=math.inf,  # as long as any other error
            in_thread=False,  # it runs in a thread of the pool already
        )
        self._reads = threading.Semaphore(recipe.parallel)  # requests at once
        self._writes = threading.Semaphore(recipe.parallel)
        self._buffers = threading.Semaphore(num_threads(recipe))  # parts and complete objects in memory
        self._pool = ThreadPoolExecutor(num_threads(recipe), "stage-part")
        self._guard = threading.Lock()
        self.num_moved = 0  # bytes

    def __enter__(self) -> Copier:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def copy(self, entry: CopyEntry) -> CopiedObject | Reject:
        """The object as it is in the target now, or why it was not copied."""
        try:
            try:
                return self._copy_checked(entry)
            except ObjectChangedError:
                return self._copy_checked(self._list_again(entry))
        except ObjectChangedError:
            return Reject(entry.key, "changed-while-read", "it was replaced again and again")
        except NotCopiedError as error:
            return Reject(entry.key, error.reason, error.detail)

    def _list_again(self, entry: CopyEntry) -> CopyEntry:
        info = with_retry(self._source, self._retry, entry.key, lambda: self._source.head(entry.key))
        if info is None:
            raise NotCopiedError("vanished", "it was listed, and is gone")
        return replace(entry, num_bytes=info.num_bytes, etag=info.etag)

    def _copy_checked(self, entry: CopyEntry) -> CopiedObject:
        """Copy, and a second time if the bytes do not have the store's checksum, or were swept on their way in."""
        try:
            return self._copy_once(entry, exact=False)
        except (_ChecksumError, _SweptError):
            pass
        try:
            return self._copy_once(entry, exact=True)
        except _ChecksumError as error:
            raise NotCopiedError("digest-mismatch", str(error)) from None
        except _SweptError:
            raise FailedError(
                f"{self._target.uri}: others remove what is being written", "stage once at a time"
            ) from None

    def _copy_once(self, entry: CopyEntry, exact: bool) -> CopiedObject:
        try:
            if entry.num_bytes <= self._recipe.part_bytes:
                return self._copy_small(entry, exact)
            return self._copy_parts(entry, exact)
        except FileNotFoundError:
            raise NotCopiedError("vanished", "it was listed, and is gone") from None

    def _copy_small(self, entry: CopyEntry, exact: bool) -> CopiedObject:
        with self._buffers:
            return self._copy_buffered(entry, exact)

    def _copy_buffered(self, entry: CopyEntry, exact: bool) -> CopiedObject:
        with self._reads:
            data, expected = self._read(entry.key, lambda: self._source.read_with_sum(entry.key, entry.etag))
        if len(data) != entry.num_bytes:
            raise ObjectChangedError(f"{entry.key}: {len(data)} bytes, {entry.num_bytes} were listed")
        if exact and expected is not None and not expected.exact:
            expected = self._content_sum(entry, exact)
        digests = _Digests(entry, expected if self._recipe.compare_sums else None)
        digests.update(data)
        copied = digests.result()
        with self._writes:
            self._write(entry.key, lambda: self._target.put(DATA + entry.key, data))
        self._count(len(data))
        return copied

    def _copy_parts(self, entry: CopyEntry, exact: bool) -> CopiedObject:
        """Parts are read and written by several threads, and digested here in their order."""
        size = max(self._recipe.part_bytes, -(-entry.num_bytes // _MAX_PARTS))
        digests = _Digests(entry, self._content_sum(entry, exact) if self._recipe.compare_sums else None)
        pending: deque[Future[bytes]] = deque()
        with self._write(entry.key, lambda: self._target.multipart(DATA + entry.key, size)) as parts:
            try:
                for number in range(-(-entry.num_bytes // size)):
                    while not self._buffers.acquire(blocking=not pending):  # a thread that waits has no buffer
                        self._take(pending, digests)
                    pending.append(self._pool.submit(self._move, entry, parts, number, size))
                while pending:
                    self._take(pending, digests)
            finally:
                for future in pending:
                    future.cancel()
                for future in pending:
                    if not future.cancelled():
                        future.exception()  # wait: it writes into what is removed next
                    self._buffers.release()
            copied = digests.result()
            self._write(entry.key, parts.complete)
        return copied

    def _take(self, pending: deque[Future[bytes]], digests: _Digests) -> None:
        digests.update(pending[0].result())
        pending.popleft()
        self._buffers.release()

    def _move(self, entry: CopyEntry, parts: PartsWriter, number: int, size: int) -> bytes:
        length = min(size, entry.num_bytes - number * size)
        with self._reads:
            data = self._read(entry.key, lambda: self._source.read_range(entry.key, number * size, length, entry.etag))
        if len(data) != length:
            raise ObjectChangedError(f"{entry.key}: shorter than it was listed")
        with self._writes:
            self._write(entry.key, lambda: parts.put_part(number, data))
        self._count(length)
        return data

    def _content_sum(self, entry: CopyEntry, exact: bool) -> ContentSum | None:
        return self._read(entry.key, lambda: self._source.content_sum(entry.key, entry.etag, exact))

    def _read(self, key: str, request: Callable[[], Result]) -> Result:
        """A request to the source about *key*. What fails for good there costs this object, unless the store denies it.

        A stage that was stopped reads nothing more; what it has read it may write.
        """
        if self._retry.stopped.is_set():
            raise InterruptedRunError("the stage was stopped", "the same command goes on where it stopped")
        try:
            return with_retry(self._source, self._retry, key, request)
        except FailedError as error:
            raise NotCopiedError("unreadable", error.message) from None
        except StoreAccessError as error:
            if self._source.local_path("x") is None:
                raise
            raise NotCopiedError("unreadable", error.message) from None

    def _write(self, key: str, request: Callable[[], Result]) -> Result:
        """A request to the target about the copy of *key*. What fails there ends the stage, unless it is the name."""
        try:
            return with_retry(self._target, self._retry, DATA + key, request)
        except KeyRefusedError as error:
            raise NotCopiedError("name-not-storable", error.message) from None
        except FileNotFoundError:
            raise _SweptError(self._target.uri) from None

    def _count(self, num_bytes: int) -> None:
        with self._guard:
            self.num_moved += num_bytes


class _SweptError(Exception):
    """What was being written is gone: another stager, at its end, took it for a dead one's."""


class _ChecksumError(Exception):
    """The bytes that came do not have the checksum that their store gives."""


class _Digests:
    """sha256 of one object, and the checksum that its store gives (*expected*), over the same bytes."""

    def __init__(self, entry: CopyEntry, expected: ContentSum | None) -> None:
        self._entry, self._expected = entry, expected
        self._sha256 = hashlib.sha256()
        self._running = RunningSum(expected) if expected else None

    def update(self, data: bytes) -> None:
        """Add the next bytes."""
        self._sha256.update(data)
        if self._running is not None:
            self._running.update(data)

    def result(self) -> CopiedObject:
        """The row of the manifest. Raises _ChecksumError, or NotCopiedError when it had to be other content."""
        entry, expected = self._entry, self._expected
        if expected is not None and self._running is not None and not self._running.matches():
            checksum = f"{expected.kind} {expected.value}"
            raise _ChecksumError(f"the bytes that came do not have the {checksum} that its store tells")
        if entry.sha256 and self._sha256.hexdigest() != entry.sha256:
            raise NotCopiedError("source-changed", "the source no longer has what the manifest names")
        proof = expected.kind if expected else "none"
        return CopiedObject(entry.key, entry.num_bytes, entry.etag, self._sha256.hexdigest(), proof)
