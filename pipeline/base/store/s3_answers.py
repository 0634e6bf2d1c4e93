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

from pipeline.base.errors import DamageError
from pipeline.base.store.s3_errors import BrokenBodyError, OtherAnswerError
from pipeline.base.store.sums import ContentSum, md5_hex

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
