"""What an error of boto3 means, told in our words. botocore's classes are known by their names: it has one door.

No text made here holds a credential: errors are told by their code, never by the server's message, which can quote
the access key.
"""

from __future__ import annotations

from typing import Any

from pipeline.base.errors import DamageError, FailedError, StoreAccessError
from pipeline.base.store.protocol import KeyRefusedError, ObjectChangedError

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


class DeniedError(StoreAccessError):
    """The store denies the request: credentials, or what they may do."""


class NoBucketError(StoreAccessError):
    """There is no such bucket."""


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
