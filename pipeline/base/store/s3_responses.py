"""Answers of S3: the body with a limit below which it is too slow, and what the headers say of the content."""

from __future__ import annotations

import base64
import binascii
import re
import time
import zlib
from collections.abc import Iterator
from typing import Any

from urllib3.exceptions import HTTPError

from pipeline.base.errors import DamageError, FailedError, StoreAccessError
from pipeline.base.store.protocol import (
    ContentSum,
    DeniedError,
    KeyRefusedError,
    NoBucketError,
    ObjectChangedError,
    md5_hex,
)

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
_BAD_DIGEST = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
_UNREACHABLE = {"EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "ConnectionClosedError"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
_BROKEN_ANSWER = {"ReadTimeoutError", "ResponseStreamingError", "IncompleteReadError", "ResponseParserError"}


class BrokenBodyError(Exception):
    """A body that came cut, too slowly, or of another length than was told."""


class LostRaceError(ObjectChangedError):
    """A request with a condition found another state than the one it asked for."""


class ObjectConflictError(FailedError):
    """Two requests met at one key; the store let neither through."""


class OtherAnswerError(FailedError):
    """200, and yet not the answer of a request that was done."""


class PastTheEndError(FailedError):
    """A range that begins behind the last byte."""


def code_of(error: Exception) -> str:
    """The server's code for *error*; "" for an error that no server told."""
    response: Any = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def from_code(code: str, where: str, bucket: str, has_bucket: bool) -> Exception:  # noqa: PLR0911 - a table
    """What an answer with *code* means. Only the code is told. *has_bucket* tells a plain 404 apart."""
    if code in _LOST_RACE:
        return LostRaceError(f"{where}: it is no longer what it was")
    if code in _CONFLICT:
        return ObjectConflictError(f"{where}: the store answered {code}", "give the same command again")
    if code in ("416", "InvalidRange"):
        return PastTheEndError(f"{where}: the store answered {code}")
    if code in _DENIED:
        return DeniedError(
            f"{where}: access denied ({code})", "check the credentials and what they may do in this bucket"
        )
    if code in _WRONG_REGION:
        return StoreAccessError(f"{where}: refused ({code})", "check the bucket's region, endpoint and credentials")
    if code in ("NoSuchKey", "NoSuchUpload") or (code == "404" and has_bucket):
        return FileNotFoundError(where)
    if code in ("404", "NoSuchBucket"):
        return NoBucketError(f"{where}: no bucket {bucket!r}", "create it, or check its name")
    if code == "KeyTooLongError":
        return KeyRefusedError(f"{where[:200]}...: the name is too long for the store", "shorten it")
    if code in _BAD_DIGEST:
        return DamageError(f"{where}: the bytes that reached the store are not those that were sent ({code})")
    return FailedError(f"{where}: the store answered {code or 'without a code'}", "give the same command again")


def from_client(error: BaseException, where: str, endpoint: str) -> Exception:
    """What an error means that boto3 met on this side of the network."""
    names = {kind.__name__ for kind in type(error).__mro__}
    name = type(error).__name__
    if "ProfileNotFound" in names:
        return StoreAccessError(f"{where}: no such profile", "name one of the shared credentials file")
    if names & _NO_CREDENTIALS:
        return StoreAccessError(
            f"{where}: no credentials found", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    if names & _UNREACHABLE:
        return StoreAccessError(
            f"{where}: no answer from endpoint {endpoint}", "check AWS_ENDPOINT_URL and the network"
        )
    if names & _BROKEN_ANSWER:
        return FailedError(f"{where}: the answer broke off ({name})", "give the same command again")
    return StoreAccessError(f"{where}: {name}", "check endpoint, bucket and network")


Answer = dict[str, Any]
_PIECE_BYTES = 1 << 20
_MULTIPART_ETAG = re.compile(r"[0-9a-f]{32}-[0-9]+")


def read_body(answer: Answer, low_speed_bytes: int, low_speed_seconds: float) -> bytes:
    """The body of a GET. Raises BrokenBodyError when it is cut, or slower than the limit for that long."""
    pieces = list(body_pieces(answer, low_speed_bytes, low_speed_seconds))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def body_pieces(answer: Answer, low_speed_bytes: int, low_speed_seconds: float) -> Iterator[bytes]:
    """The same in pieces, as they come.

    It is read from below botocore's StreamingBody, which waits for a whole piece however slowly it comes. The speed is
    that of the network: the time that the caller takes for a piece does not count.
    """
    stream, expected = answer["Body"]._raw_stream, answer["ContentLength"]
    received, seen, elapsed = 0, 0, 0.0
    try:
        while received < expected:
            begun = time.monotonic()
            piece = stream.read1(min(_PIECE_BYTES, expected - received))
            if not piece:
                raise BrokenBodyError(f"{received} of {expected} bytes came")
            received += len(piece)
            elapsed += time.monotonic() - begun
            if elapsed > low_speed_seconds:
                if received - seen < low_speed_bytes * elapsed:
                    raise BrokenBodyError(f"slower than {low_speed_bytes} bytes/s for {low_speed_seconds:g} s")
                seen, elapsed = received, 0.0
            yield piece
    except HTTPError as error:
        raise BrokenBodyError(type(error).__name__) from None
    finally:
        _hand_back(answer["Body"], stream, received == expected)


def _hand_back(body: Any, stream: Any, complete: bool) -> None:
    """Give the connection back to the pool for the next request, or close it with what is left in it."""
    if complete:
        stream.release_conn()
    else:
        body.close()


def sum_of(answer: Answer, bucket: str) -> ContentSum | None:
    """What a GET or HEAD of a whole object says of its content; md5-parts comes without its sizes."""
    if answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
        for kind, name in (("sha256", "ChecksumSHA256"), ("crc32", "ChecksumCRC32")):
            value = _hex(answer.get(name, ""))
            if value:
                return ContentSum(kind, value)  # type: ignore[arg-type]
    etag = str(answer.get("ETag", "")).strip('"')
    if not _etag_is_md5(answer, bucket):
        return None
    if re.fullmatch(r"[0-9a-f]{32}", etag):
        return ContentSum("md5", etag)
    return ContentSum("md5-parts", etag) if _MULTIPART_ETAG.fullmatch(etag) else None


def _etag_is_md5(answer: Answer, bucket: str) -> bool:
    """False where AWS says that an ETag is no MD5: keys of KMS or of the client, directory buckets."""
    encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
    return not encrypted and not bucket.endswith("--x-s3")


def check_received(answer: Answer, data: bytes, where: str, bucket: str) -> None:
    """Raise unless the answer to a PUT of *data* shows that the store holds exactly these bytes, as far as it tells.

    DamageError: it holds others. OtherAnswerError: this is not the answer to a PUT that was done.
    """
    if "ETag" not in answer:
        raise OtherAnswerError(f"{where}: the store's answer names no object", "give the same command again")
    told = sum_of({**answer, "ChecksumType": "FULL_OBJECT"}, bucket)
    if told is None:
        return
    if told.kind == "crc32":
        same = f"{zlib.crc32(data):08x}" == told.value
    else:
        same = told.kind != "md5" or md5_hex(data) == told.value
    if not same:
        raise DamageError(f"{where}: the store received other bytes than were sent", "give the same command again")


def _hex(value: str) -> str:
    """Hex of a base64 checksum; "" for none, or for one that is made of parts."""
    if not value or "-" in value:
        return ""
    try:
        return base64.b64decode(value, validate=True).hex()
    except binascii.Error:
        return ""
