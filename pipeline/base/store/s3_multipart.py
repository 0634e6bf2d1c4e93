"""Objects in parts on S3. The answer to Complete may get lost: what is there then decides, not the answer."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from pipeline.base.errors import FailedError, VitpipeError
from pipeline.base.store.protocol import ContentSum
from pipeline.base.store.s3_responses import Answer

WRITER = "vitpipe-put"  # metadata that tells which put wrote an object
MAX_PARTS = 10_000
_THREADS = 4
Call = Callable[..., Answer]  # (operation, key, **arguments): one request


class S3Parts:
    """See PartsWriter. The upload carries a token, by which its object is known when it is there."""

    def __init__(self, call: Call, put_checked: Callable[..., Answer], key: str, source_name: str) -> None:
        self._call, self._put_checked, self._key, self._source_name = call, put_checked, key, source_name
        self._token = uuid.uuid4().hex
        self._upload = str(call("create_multipart_upload", key, Metadata={WRITER: self._token})["UploadId"])
        self._parts: dict[int, Answer] = {}
        self._guard = threading.Lock()
        self._is_done = False

    def put_part(self, number: int, data: bytes) -> None:
        """See PartsWriter."""
        answer = self._put_checked("upload_part", self._key, data, UploadId=self._upload, PartNumber=number + 1)
        receipt: Answer = {name: answer[name] for name in ("ETag", "ChecksumCRC32") if name in answer}
        with self._guard:
            self._parts[number + 1] = receipt | {"PartNumber": number + 1}

    def complete(self) -> None:
        """See PartsWriter. A second Complete, after an answer that got lost, finds no upload: the object decides."""
        parts: dict[str, Any] = {"Parts": [self._parts[number] for number in sorted(self._parts)]}
        try:
            answer = self._call("complete_multipart_upload", self._key, UploadId=self._upload, MultipartUpload=parts)
            if "ETag" not in answer:  # 200 with something else inside
                raise FailedError(f"{self._source_name}: its parts were not joined", "give the same command again")
        except (VitpipeError, FileNotFoundError):
            if not self._is_there():
                raise
        self._is_done = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_done:
            with suppress(VitpipeError, FileNotFoundError):  # else it is swept later
                self._call("abort_multipart_upload", self._key, UploadId=self._upload)

    def _is_there(self) -> bool:
        try:
            metadata: dict[str, str] = self._call("head_object", self._key)["Metadata"]
        except (VitpipeError, FileNotFoundError):
            return False
        return metadata.get(WRITER) == self._token


def each_part(job: Callable[[int], None], count: int) -> None:
    """Call *job* with 0 .. count-1 from a few threads. After the first error no further call is begun."""
    with ThreadPoolExecutor(_THREADS) as pool:
        futures = [pool.submit(job, number) for number in range(count)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def with_part_sizes(call: Call, key: str, etag: str, content: ContentSum | None, exact: bool) -> ContentSum | None:
    """*content*, and for an object that was written in parts their sizes; None when the store does not tell them."""
    if content is None or content.kind != "md5-parts":
        return content
    count = int(content.value.rpartition("-")[2])
    sizes = []
    for number in range(1, (count if exact else 1) + 1):
        part = call("head_object", key, PartNumber=number, IfMatch=etag)
        if part.get("PartsCount", 1) != count:
            return None
        sizes.append(int(part["ContentLength"]))
    return ContentSum(content.kind, content.value, tuple(sizes), exact or count == 1)
