"""Answers of S3: their error codes, their bodies with a limit of speed, and what the headers say of the content.

An error shows the server's code, never the server's message, which can quote the access key. Errors of botocore are
recognised by the names of their classes, because only ``s3.py`` imports boto3.
"""

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

Answer = dict[str, Any]  # of boto3
_PIECE_BYTES = 1 << 20
_MULTIPART_ETAG = re.compile(r"[0-9a-f]{32}-[0-9]+")

# Error codes of servers, and error types of botocore, by what they mean.
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
    """A body that came cut, too slowly, or of another length than its header says."""


class LostRaceError(ObjectChangedError):
    """The condition of a request does not hold: the object has another state."""


class ObjectConflictError(FailedError):
    """Two requests met at one key; the store let neither through."""


class OtherAnswerError(FailedError):
    """200, and yet not the answer of a request that was done."""


class PastTheEndError(FailedError):
    """A range that begins behind the last byte."""


def code_of(error: Exception) -> str:
    """The server's code for *error*; "" for an error that comes from no server."""
    response: Any = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def error_from_code(code: str, source_name: str, bucket: str, has_bucket: bool) -> Exception:  # noqa: PLR0911 - a table
    """The error that an answer with *code* means; it shows the code alone. *has_bucket* tells a plain 404 apart."""
    if code in _LOST_RACE:
        return LostRaceError(f"{source_name}: it is no longer what it was")
    if code in _CONFLICT:
        return ObjectConflictError(f"{source_name}: the store answered {code}", "give the same command again")
    if code in ("416", "InvalidRange"):
        return PastTheEndError(f"{source_name}: the store answered {code}")
    if code in _DENIED:
        return DeniedError(
            f"{source_name}: access denied ({code})", "check the credentials and what they may do in this bucket"
        )
    if code in _WRONG_REGION:
        return StoreAccessError(
            f"{source_name}: refused ({code})", "check the bucket's region, endpoint and credentials"
        )
    if code in ("NoSuchKey", "NoSuchUpload") or (code == "404" and has_bucket):
        return FileNotFoundError(source_name)
    if code in ("404", "NoSuchBucket"):
        return NoBucketError(f"{source_name}: no bucket {bucket!r}", "create it, or check its name")
    if code == "KeyTooLongError":
        return KeyRefusedError(f"{source_name[:200]}...: the name is too long for the store", "shorten it")
    if code in _BAD_DIGEST:
        return DamageError(f"{source_name}: the bytes that reached the store are not those that were sent ({code})")
    return FailedError(f"{source_name}: the store answered {code or 'without a code'}", "give the same command again")


def error_from_client(error: BaseException, source_name: str, endpoint: str) -> Exception:
    """The error that one of boto3 means, which came up on this side of the network."""
    names = {kind.__name__ for kind in type(error).__mro__}
    name = type(error).__name__
    if "ProfileNotFound" in names:
        return StoreAccessError(f"{source_name}: no such profile", "name one of the shared credentials file")
    if names & _NO_CREDENTIALS:
        return StoreAccessError(
            f"{source_name}: no credentials found", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    if names & _UNREACHABLE:
        return StoreAccessError(
            f"{source_name}: no answer from endpoint {endpoint}", "check AWS_ENDPOINT_URL and the network"
        )
    if names & _BROKEN_ANSWER:
        return FailedError(f"{source_name}: the answer broke off ({name})", "give the same command again")
    return StoreAccessError(f"{source_name}: {name}", "check endpoint, bucket and network")


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


def parse_content_sum(answer: Answer, bucket: str) -> ContentSum | None:
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


def check_received(answer: Answer, data: bytes, source_name: str, bucket: str) -> None:
    """Raise unless the answer to a PUT of *data* shows that the store holds exactly these bytes, as far as it tells.

    DamageError: it holds others. OtherAnswerError: this is not the answer to a PUT that was done.
    """
    if "ETag" not in answer:
        raise OtherAnswerError(f"{source_name}: the store's answer names no object", "give the same command again")
    received = parse_content_sum({**answer, "ChecksumType": "FULL_OBJECT"}, bucket)
    if received is None:
        return
    if received.kind == "crc32":
        same = f"{zlib.crc32(data):08x}" == received.value
    else:
        same = received.kind != "md5" or md5_hex(data) == received.value
    if not same:
        raise DamageError(
            f"{source_name}: the store received other bytes than were sent", "give the same command again"
        )


def _hex(value: str) -> str:
    """Hex of a base64 checksum; "" for none, or for one that is made of parts."""
    if not value or "-" in value:
        return ""
    try:
        return base64.b64decode(value, validate=True).hex()
    except binascii.Error:
        return ""
