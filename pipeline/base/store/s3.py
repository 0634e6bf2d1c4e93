"""A bucket and prefix as a store. The only door to boto3.

Credentials come from boto3's own chain (environment, shared files, instance role). No text made here holds a
credential: errors are told by their code, never by the server's message, which can quote the access key.
"""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore import UNSIGNED
from botocore import exceptions as aws
from botocore.config import Config as ClientConfig

from pipeline.base.errors import DamageError, FailedError, StoreAccessError
from pipeline.base.store.local import file_errors
from pipeline.base.store.protocol import ObjectInfo, checked_key, checked_prefix

_DENIED = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_DENIED |= {"AllAccessDisabled", "AccountProblem", "RequestTimeTooSkewed"}
_WRONG_REGION = {
    "301",
    "400",
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}
_LOST_RACE = {"412", "PreconditionFailed"}
_CONFLICT = {"409", "ConditionalRequestConflict", "OperationAborted"}  # nobody has won yet: the request may be repeated
_UNREACHABLE = (
    aws.EndpointConnectionError,
    aws.ConnectTimeoutError,
    aws.ProxyConnectionError,
    aws.ConnectionClosedError,
)
_NO_CREDENTIALS = (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError)
_BROKEN_BODY = (aws.ReadTimeoutError, aws.ResponseStreamingError, aws.IncompleteReadError, aws.FlexibleChecksumError)
_ATTEMPTS = 4
_MAKING = threading.Lock()
_WRITER = "vitpipe-put"  # metadata that tells which conditional put wrote an object
_CLIENT = ClientConfig(
    connect_timeout=5,
    read_timeout=60,
    retries={"mode": "standard", "max_attempts": _ATTEMPTS},
    max_pool_connections=16,
    signature_version=None,
)
_TRANSFER = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=16 << 20, max_concurrency=4)


class S3Store:
    """Objects below ``s3://bucket/prefix``. The client is made at first use, once per process."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        anonymous: bool = False,
        requester_pays: bool = False,
    ) -> None:
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self._settings = (endpoint, region, profile, anonymous)
        self._extra: dict[str, Any] = {"RequestPayer": "requester"} if requester_pays else {}
        self._made: tuple[int, Any] | None = None
        self._bucket_seen = False

    @property
    def uri(self) -> str:
        """``s3://bucket/prefix``."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": None}

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See :class:`~pipeline.base.store.protocol.Store`.

        AWS and most others list in the order of keys. SeaweedFS goes folder by folder, and directory buckets have
        no order: those listings are held and sorted.
        """
        lead = f"{self.prefix}/" if self.prefix else ""
        with self._told():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=lead + checked_prefix(prefix), **self._extra
            )
            unordered = self.bucket.endswith("--x-s3")
            held: list[ObjectInfo] = []
            for page in pages:
                found = [
                    ObjectInfo(item["Key"][len(lead) :], item["Size"], item["ETag"])
                    for item in page.get("Contents", [])
                    if not item["Key"].endswith("/")  # a "folder" that some tools create
                ]
                if unordered or page["ResponseMetadata"]["HTTPHeaders"].get("server", "").startswith("SeaweedFS"):
                    held += found
                else:
                    yield from found
        yield from sorted(held, key=lambda info: info.key)

    def head(self, key: str) -> ObjectInfo | None:
        """See Store."""
        try:
            with self._told(key):
                found = self._client.head_object(**self._at(key))
        except FileNotFoundError:
            return None
        return ObjectInfo(key, found["ContentLength"], found["ETag"])

    def read(self, key: str) -> bytes:
        """See Store."""
        return self._get(key)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """See Store."""
        if length <= 0:
            return b""
        try:
            return self._get(key, Range=f"bytes={start}-{start + length - 1}")
        except _PastTheEndError:
            return b""

    def put(self, key: str, data: bytes) -> None:
        """See Store."""
        with self._told(key):
            self._client.put_object(**self._at(key), Body=data)

    def put_file(self, key: str, path: Path) -> None:
        """See Store. Above 64 MiB in parts; an object appears when its last part is confirmed."""
        with self._told(key):
            target = self._at(key)
            self._client.upload_file(
                str(path), target["Bucket"], target["Key"], ExtraArgs=self._extra or None, Config=_TRANSFER
            )

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store."""
        return self._conditional_put(key, data, IfNoneMatch="*")

    def put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        """See Store."""
        return self._conditional_put(key, data, IfMatch=etag)

    def fetch(self, key: str, path: Path) -> None:
        """See Store."""
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
        target = self._at(key)
        with (
            file_errors(path.parent.absolute().as_uri()),
            self._told(key),
        ):  # in this order: some of botocore's are OSError
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._client.download_file(
                    target["Bucket"], target["Key"], str(temporary), ExtraArgs=self._extra or None, Config=_TRANSFER
                )
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        """See Store."""
        with self._told(key):
            self._client.delete_object(**self._at(key))

    def local_path(self, key: str) -> Path | None:
        """See Store: there is none."""
        return None

    def create_bucket(self) -> None:
        """Create the bucket; nothing happens when it is there and ours."""
        try:
            with self._told():
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
            if self._made is None or self._made[0] != os.getpid():  # a client must not cross a fork
                self._made = (os.getpid(), self._make_client())
            return self._made[1]

    def _make_client(self) -> Any:
        endpoint, region, profile, anonymous = self._settings
        session = boto3.session.Session(profile_name=profile, region_name=region)
        config = _CLIENT.merge(ClientConfig(signature_version=UNSIGNED)) if anonymous else _CLIENT
        return session.client(
            "s3", endpoint_url=endpoint, config=config, region_name=session.region_name or "us-east-1"
        )

    def _at(self, key: str) -> dict[str, Any]:
        full = f"{self.prefix}/{checked_key(key)}" if self.prefix else checked_key(key)
        return {"Bucket": self.bucket, "Key": full, **self._extra}

    def _get(self, key: str, **extra: str) -> bytes:
        """The body of one answer. boto3 repeats requests, but not bodies that break off: that is done here."""
        with self._told(key):
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    body: bytes = self._client.get_object(**self._at(key), **extra)["Body"].read()
                    break
                except _BROKEN_BODY:
                    if attempt == _ATTEMPTS:
                        raise
        return body

    def _conditional_put(self, key: str, data: bytes, **condition: str) -> bool:
        """Put if *condition* holds. Each put carries a token of its own, which tells whose object is there.

        The token is needed because a request is repeated when its answer gets lost, and then loses against itself.
        """
        token = uuid.uuid4().hex
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._told(key):
                    self._client.put_object(**self._at(key), Body=data, Metadata={_WRITER: token}, **condition)
                return True
            except _LostRaceError:
                return self._writer(key) == token
            except FileNotFoundError:  # if-match of an object that is gone
                return False
            except _ConflictError:
                time.sleep(random.uniform(0, 0.1 * 2**attempt))
        raise FailedError(f"{self.uri}/{key}: other writers kept this put from ending", "give the same command again")

    def _writer(self, key: str) -> str | None:
        try:
            with self._told(key):
                found: dict[str, str] = self._client.head_object(**self._at(key))["Metadata"]
        except FileNotFoundError:
            return None
        return found.get(_WRITER)

    @contextmanager
    def _told(self, key: str = "") -> Iterator[None]:
        """Turn botocore's errors into ours."""
        where = f"{self.uri}/{key}" if key else self.uri
        try:
            yield
        except aws.ClientError as error:
            raise self._from_code(error, where) from None
        except Boto3Error as error:  # wraps what broke an upload or a download, and quotes the server
            inner = getattr(error, "last_exception", None) or error.__context__
            if isinstance(inner, aws.ClientError):
                raise self._from_code(inner, where) from None
            raise self._from_client(inner or error, where) from None
        except (aws.BotoCoreError, ValueError) as error:
            raise self._from_client(error, where) from None

    def _from_client(self, error: BaseException, where: str) -> Exception:
        """What an error means that boto3 met on this side of the network."""
        name = type(error).__name__
        if isinstance(error, aws.ProfileNotFound):
            return StoreAccessError(f"{where}: no such profile", "name one of the shared credentials file")
        if isinstance(error, _NO_CREDENTIALS):
            return StoreAccessError(
                f"{where}: no credentials found", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
            )
        if isinstance(error, _UNREACHABLE):
            return StoreAccessError(
                f"{where}: no answer from endpoint {self._endpoint()}", "check AWS_ENDPOINT_URL and the network"
            )
        if isinstance(error, aws.FlexibleChecksumError):
            return DamageError(f"{where}: the bytes that came are not those of its checksum", "look at the object")
        if isinstance(error, _BROKEN_BODY):
            return FailedError(f"{where}: the answer broke off ({name})", "give the same command again")
        return StoreAccessError(f"{where}: {name}", "check endpoint, bucket and network")

    def _endpoint(self) -> str:
        """The endpoint as shown to people: without a user's name and password."""
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        text = self._settings[0] or next((os.environ[name] for name in names if os.environ.get(name)), "")
        parts = urlsplit(text)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if text else "of AWS"

    def _from_code(self, error: aws.ClientError, where: str) -> Exception:  # noqa: PLR0911 - a table
        """What an answer of the server means. Only its code is told."""
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _LOST_RACE:
            return _LostRaceError(where)
        if code in _CONFLICT:
            return _ConflictError(f"{where}: the store answered {code}", "give the same command again")
        if code in ("416", "InvalidRange"):
            return _PastTheEndError(f"{where}: the store answered {code}")
        if code in _DENIED:
            return StoreAccessError(
                f"{where}: access denied ({code})", "check the credentials and what they may do in this bucket"
            )
        if code in _WRONG_REGION:
            return StoreAccessError(f"{where}: refused ({code})", "check the bucket's region, endpoint and credentials")
        if code == "NoSuchBucket":
            return self._no_bucket(where)
        if code == "NoSuchKey" or (code == "404" and self._has_bucket()):
            return FileNotFoundError(where)
        if code == "404":
            return self._no_bucket(where)
        return FailedError(f"{where}: the store answered {code}", "give the same command again")

    def _has_bucket(self) -> bool:
        """False when the bucket is missing, which a HEAD of an object does not tell from a missing key."""
        if not self._bucket_seen:
            try:
                self._client.head_bucket(Bucket=self.bucket)
            except aws.ClientError as error:
                if error.response.get("Error", {}).get("Code") in ("404", "NoSuchBucket"):
                    return False
            except aws.BotoCoreError:
                return True  # not known; the next call will tell what is wrong
            self._bucket_seen = True  # or it may read objects and not look at the bucket
        return True

    def _no_bucket(self, where: str) -> StoreAccessError:
        return StoreAccessError(f"{where}: no bucket {self.bucket!r}", "create it, or check its name")


class _LostRaceError(Exception):
    """A conditional put found another state than the one it asked for."""


class _ConflictError(FailedError):
    """Two requests met at one key; the store let neither through."""


class _PastTheEndError(FailedError):
    """A range that begins behind the last byte."""
