"""A bucket and prefix as a store. The only door to boto3.

Credentials come from boto3's own chain (environment, shared files, instance role), which is read again when the
store denies a request: they may have been renewed.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore import exceptions as aws
from botocore.config import Config as ClientConfig

from pipeline.base.errors import DamageError, FailedError
from pipeline.base.retry import attempts
from pipeline.base.store.local import LocalStore, file_errors
from pipeline.base.store.protocol import (
    BucketSettings,
    ContentSum,
    DeniedError,
    ObjectInfo,
    checked_key,
    checked_prefix,
    sum_matches,
)
from pipeline.base.store.s3_multipart import MAX_PARTS, WRITER, S3Parts, each_part, with_part_sizes
from pipeline.base.store.s3_responses import (
    Answer,
    BrokenBodyError,
    LostRaceError,
    ObjectConflictError,
    OtherAnswerError,
    PastTheEndError,
    body_pieces,
    check_received,
    code_of,
    error_from_client,
    error_from_code,
    parse_content_sum,
    read_body,
)

_ATTEMPTS, _FIRST_PAUSE_SECONDS = 4, 0.2
_AGAIN = "give the same command again"
_MAKING = threading.Lock()
_RENEW_SECONDS = 2.0  # a client that is younger has just read the credentials
_WHOLE_BYTES = 64 << 20  # bigger files travel in parts
_PART_BYTES = 16 << 20


class S3Store:
    """Objects below ``s3://bucket/prefix``. The client is made at first use, once per process."""

    def __init__(self, bucket: str, prefix: str, settings: BucketSettings | None = None) -> None:
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self._settings = settings or BucketSettings()
        self._extra: dict[str, Any] = {"RequestPayer": "requester"} if self._settings.requester_pays else {}
        self._cached_client: tuple[int, float, Any] | None = None
        self._bucket_seen = False

    @property
    def uri(self) -> str:
        """``s3://bucket/prefix``."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cached_client": None}

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See :class:`~pipeline.base.store.protocol.Store`.

        AWS and most others list in the order of keys. SeaweedFS goes folder by folder, and directory buckets have
        no order: those listings are kept in memory and sorted.
        """
        lead = self._key_prefix
        with self._translated_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=lead + checked_prefix(prefix), **self._extra
            )
            unordered = self.bucket.endswith("--x-s3")
            unsorted: list[ObjectInfo] = []
            for page in pages:
                infos = [
                    ObjectInfo(row["Key"][len(lead) :], row["Size"], row["ETag"], row["LastModified"].timestamp())
                    for row in page.get("Contents", [])
                    if row["Size"] or not row["Key"].endswith("/")  # a "folder" that some tools create
                ]
                if unordered or page["ResponseMetadata"]["HTTPHeaders"].get("server", "").startswith("SeaweedFS"):
                    unsorted += infos
                else:
                    yield from infos
        yield from sorted(unsorted, key=lambda info: info.key)

    def head(self, key: str) -> ObjectInfo | None:
        """See Store."""
        try:
            answer = self._call("head_object", key)
        except FileNotFoundError:
            return None
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"], answer["LastModified"].timestamp())

    def read(self, key: str, etag: str = "") -> bytes:
        """See Store. Compared with the checksum, where the answer has one; ETags are left to ``read_with_sum``."""
        for _ in range(2):
            answer, data = self._get(key, etag)
            expected = parse_content_sum(answer, self.bucket)
            if expected is None or expected.kind not in ("sha256", "crc32") or sum_matches(expected, [data]):
                return data
        raise DamageError(f"{self.uri}/{key}: the bytes that came are not those of its checksum", "look at the object")

    def read_range(self, key: str, start: int, length: int, etag: str = "") -> bytes:
        """See Store."""
        if length <= 0:
            return b""
        try:
            return self._get(key, etag, start, Range=f"bytes={start}-{start + length - 1}")[1]
        except PastTheEndError:
            return b""

    def stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        """See Store."""
        try:
            answer = self._call("get_object", key, Range=f"bytes={start}-")
        except PastTheEndError:
            return
        if not answer.get("ContentRange", f"bytes {start}-").startswith(f"bytes {start}-"):
            raise OtherAnswerError(f"{self.uri}/{key}: another answer than was asked for")
        try:
            yield from body_pieces(answer, self._settings.low_speed_bytes, self._settings.low_speed_seconds)
        except BrokenBodyError as error:
            raise FailedError(f"{self.uri}/{key}: the answer broke off ({error})", _AGAIN) from None

    def read_with_sum(self, key: str, etag: str = "") -> tuple[bytes, ContentSum | None]:
        """See Store."""
        answer, data = self._get(key, etag)
        return data, with_part_sizes(
            self._call, key, answer["ETag"], parse_content_sum(answer, self.bucket), exact=False
        )

    def content_sum(self, key: str, etag: str = "", exact: bool = False) -> ContentSum | None:
        """See Store. The sizes of parts take a request for the first one, or one for each."""
        condition = {"IfMatch": etag} if etag else {}
        answer = self._call("head_object", key, ChecksumMode="ENABLED", **condition)
        return with_part_sizes(self._call, key, answer["ETag"], parse_content_sum(answer, self.bucket), exact)

    def put(self, key: str, data: bytes) -> None:
        """See Store."""
        self._put_checked("put_object", key, data)

    def put_file(self, key: str, path: Path) -> None:
        """See Store. Above 64 MiB in parts; an object appears when its last part is confirmed."""
        source_name = path.parent.absolute().as_uri()
        with file_errors(source_name):
            size = path.stat().st_size
            if size <= _WHOLE_BYTES:
                self.put(key, path.read_bytes())
                return
        part_bytes = max(_PART_BYTES, -(-size // MAX_PARTS))

        def send(number: int) -> None:
            with file_errors(source_name), path.open("rb") as file:
                file.seek(number * part_bytes)
                data = file.read(part_bytes)
            parts.put_part(number, data)

        with self.multipart(key, part_bytes) as parts:
            each_part(send, -(-size // part_bytes))
            parts.complete()

    def multipart(self, key: str, part_bytes: int) -> S3Parts:
        """See Store."""
        return S3Parts(self._call, self._put_checked, key, f"{self.uri}/{key}")

    @contextmanager
    def incoming(self, key: str) -> Iterator[Path]:
        """See Store."""
        with tempfile.TemporaryDirectory(prefix="vitpipe-put-") as folder:
            path = Path(folder) / "object"
            yield path
            self.put_file(key, path)

    def sweep(self, prefix: str = "", older_than_seconds: float = 0.0, dry_run: bool = False) -> int:
        """See Store: unfinished multipart uploads. Their age is told by the server's own clock."""
        lead, swept = self._key_prefix, 0
        with self._translated_errors():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=lead + checked_prefix(prefix), **self._extra
            )
            for page in pages:
                now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
                for upload in page.get("Uploads", []):
                    if upload["Initiated"].timestamp() <= now - older_than_seconds:
                        swept += 1 if dry_run else self._abort(upload["Key"], upload["UploadId"])
        return swept

    def prune(self) -> None:
        """See Store."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store."""
        return self._conditional_put(key, data, IfNoneMatch="*")

    def put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        """See Store."""
        return self._conditional_put(key, data, IfMatch=etag)

    def fetch(self, key: str, path: Path) -> None:
        """See Store. Every range asks for the same ETag, so that two states never mix."""
        info = self.head(key)
        if info is None:
            raise FileNotFoundError(f"{self.uri}/{key}")
        target = LocalStore(path.parent.absolute())
        if info.num_bytes <= _WHOLE_BYTES:
            target.put(path.name, self.read(key))
            return

        def take(number: int) -> None:
            parts.put_part(number, self.read_range(key, number * _PART_BYTES, _PART_BYTES, info.etag))

        with target.multipart(path.name, _PART_BYTES) as parts:
            each_part(take, -(-info.num_bytes // _PART_BYTES))
            parts.complete()

    def delete(self, key: str) -> None:
        """See Store."""
        self._call("delete_object", key)

    def local_path(self, key: str) -> Path | None:
        """See Store: there is none."""
        return None

    def create_bucket(self) -> None:
        """Create the bucket; nothing happens when it is there and ours."""
        try:
            with self._translated_errors():
                self._client.create_bucket(Bucket=self.bucket)
        except FailedError:
            if not self._has_bucket():
                raise

    def check_writable(self) -> None:
        """See Store."""
        key = f".vitpipe-probe-{uuid.uuid4().hex}"
        self.put(key, b"")
        self.delete(key)

    @property
    def _client(self) -> Any:
        with _MAKING:  # a client may be shared by threads, but making one takes 0.2 s of CPU
            if self._cached_client is None or self._cached_client[0] != os.getpid():  # a client must not cross a fork
                self._cached_client = (os.getpid(), time.monotonic(), self._make_client())
            return self._cached_client[2]

    def _make_client(self) -> Any:
        settings = self._settings
        session = boto3.session.Session(profile_name=settings.profile, region_name=settings.region)
        config = ClientConfig(
            connect_timeout=5,
            read_timeout=settings.low_speed_seconds,
            retries={"mode": "standard", "max_attempts": _ATTEMPTS},
            max_pool_connections=settings.connections,
            signature_version=UNSIGNED if settings.anonymous else None,
        )
        return session.client(
            "s3", endpoint_url=settings.endpoint, config=config, region_name=session.region_name or "us-east-1"
        )

    def _renew(self) -> None:
        """Let the next request look for credentials again."""
        with _MAKING:
            if self._cached_client is not None and time.monotonic() - self._cached_client[1] > _RENEW_SECONDS:
                self._cached_client = None

    @property
    def _key_prefix(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def _address(self, key: str) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": self._key_prefix + checked_key(key), **self._extra}

    def _call(self, operation: str, key: str, **arguments: Any) -> Answer:
        """One request about the object at *key*."""
        with self._translated_errors(key):
            answer: Answer = getattr(self._client, operation)(**self._address(key), **arguments)
        return answer

    def _get(self, key: str, etag: str, start: int = 0, **more: str) -> tuple[Answer, bytes]:
        """One answer with its body. boto3 repeats requests, but not bodies that break off: that is done here."""
        condition = {"IfMatch": etag} if etag else {}
        broken = ""
        for _ in attempts(_ATTEMPTS, _FIRST_PAUSE_SECONDS):
            answer = self._call("get_object", key, **condition, **more)
            if etag and answer.get("ETag", etag) != etag:
                raise LostRaceError(f"{self.uri}/{key}: it is no longer what it was")
            try:
                data = read_body(answer, self._settings.low_speed_bytes, self._settings.low_speed_seconds)
            except BrokenBodyError as error:
                broken = str(error)
                continue
            if "ETag" in answer and answer.get("ContentRange", f"bytes {start}-").startswith(f"bytes {start}-"):
                return answer, data
            broken = "another answer than was asked for"
        raise FailedError(f"{self.uri}/{key}: the answer broke off ({broken})", _AGAIN)

    def _put_checked(self, operation: str, key: str, data: bytes, **more: Any) -> Answer:
        """Send *data*, and look at what the server says that it received; again when that is something else."""
        for _ in attempts(_ATTEMPTS, _FIRST_PAUSE_SECONDS):
            try:
                answer = self._call(operation, key, Body=data, **more)
                check_received(answer, data, f"{self.uri}/{key}", self.bucket)
                return answer
            except (DamageError, OtherAnswerError) as error:
                failure = error
        raise failure

    def _conditional_put(self, key: str, data: bytes, **condition: str) -> bool:
        """Put if *condition* holds. Each put carries a token of its own, which tells whose object is there.

        The token is needed because a request is repeated when its answer gets lost, and then loses against itself.
        """
        token = uuid.uuid4().hex
        for _ in attempts(_ATTEMPTS, _FIRST_PAUSE_SECONDS):
            try:
                self._put_checked("put_object", key, data, Metadata={WRITER: token}, **condition)
                return True
            except LostRaceError:
                return self._writer(key) == token
            except FileNotFoundError:  # if-match of an object that is gone
                return False
            except ObjectConflictError:
                continue
        raise FailedError(f"{self.uri}/{key}: other writers kept this put from ending", "give the same command again")

    def _writer(self, key: str) -> str | None:
        try:
            metadata: dict[str, str] = self._call("head_object", key)["Metadata"]
        except FileNotFoundError:
            return None
        return metadata.get(WRITER)

    def _abort(self, key: str, upload: str) -> int:
        """1 when the upload was there, as the caller counts."""
        try:
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload, **self._extra)
        except aws.ClientError as error:
            if code_of(error) not in ("NoSuchUpload", "404"):
                raise
            return 0
        return 1

    @contextmanager
    def _translated_errors(self, key: str = "") -> Iterator[None]:
        """Turn botocore's errors into those of a store."""
        source_name = f"{self.uri}/{key}" if key else self.uri
        try:
            yield
        except aws.ClientError as error:
            code = code_of(error)
            has_bucket = code != "404" or self._has_bucket()
            translated = error_from_code(code, source_name, self.bucket, has_bucket)
            if isinstance(translated, DeniedError):
                self._renew()
            raise translated from None
        except (aws.BotoCoreError, ValueError) as error:
            raise error_from_client(error, source_name, self._endpoint()) from None

    def _endpoint(self) -> str:
        """The endpoint as shown to people: without a user's name and password."""
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        text = self._settings.endpoint or next((os.environ[name] for name in names if os.environ.get(name)), "")
        parts = urlsplit(text)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if text else "of AWS"

    def _has_bucket(self) -> bool:
        """False when the bucket is missing, which a HEAD of an object does not tell from a missing key."""
        if not self._bucket_seen:
            try:
                self._client.head_bucket(Bucket=self.bucket)
            except aws.ClientError as error:
                if code_of(error) in ("404", "NoSuchBucket"):
                    return False
            except aws.BotoCoreError:
                return True  # not known; the next call will tell what is wrong
            self._bucket_seen = True  # or it may read objects and not look at the bucket
        return True
