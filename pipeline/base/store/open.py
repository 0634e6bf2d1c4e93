"""URI -> store. Settings stand per bucket, since two stores may need two endpoints and two credentials."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from pipeline.base.errors import InputError
from pipeline.base.store.local import LocalStore
from pipeline.base.store.protocol import BucketSettings, Store, Stores

__all__ = ["Stores", "normalise_uri", "open_store", "split_uri"]


def normalise_uri(text: str) -> str:
    """A workspace or source URI: ``s3://bucket/prefix`` or ``file:///path``; plain paths become the latter.

    Raises InputError for other schemes, credentials inside the URI, and ``..`` in an s3 key.
    """
    scheme, slashes, rest = text.partition("://")
    other = not slashes and re.match(r"(pipe|exec|file|s3|https?|gs):", text)
    if other or (slashes and scheme not in ("file", "s3")):
        shown = scheme.partition(":")[0]
        raise InputError(
            f"{shown}: URIs like this are not read", "use s3://bucket/prefix, file:///path or a plain path"
        )
    if not slashes:
        return _file_uri(text)
    if scheme == "s3":
        return _s3_uri(rest)
    if not rest.startswith("/"):
        raise InputError(f"{text!r} names a host, not a path", "write three slashes: file:///path")
    return _file_uri(unquote(rest))


def _file_uri(path: str) -> str:
    if not path or "\0" in path:
        raise InputError("an empty path", "name a folder, file or s3:// URI")
    try:
        return Path(path).expanduser().absolute().as_uri()
    except RuntimeError:
        raise InputError(f"{path!r}: no home folder of that user", "write the path out") from None


def _s3_uri(rest: str) -> str:
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket or "?" in rest:
        raise InputError(
            "credentials or options inside an s3:// URI are refused", "use a profile, or the AWS_* variables"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise InputError(f"{bucket!r} is not a bucket name", "write s3://bucket/prefix")
    if ".." in prefix.split("/"):
        raise InputError("'..' inside an s3:// URI is refused", "write the prefix out")
    return f"s3://{bucket}/{prefix.strip('/')}".rstrip("/")


def split_uri(uri: str) -> tuple[str, str]:
    """(parent, last name) of a normalised URI. Raises InputError for a bucket or the root: they have no parent."""
    parent, _, name = uri.rstrip("/").rpartition("/")
    if parent in ("", "s3:/"):
        raise InputError(f"{uri} names no object inside a folder or bucket", "add its name")
    if parent == "file://":
        return "file:///", unquote(name)
    return parent, unquote(name) if uri.startswith("file:") else name


def open_store(uri: str, stores: Stores | None = None) -> Store:
    """The store at *uri*. Opens no connection yet, and makes no folder."""
    uri = normalise_uri(uri)
    if uri.startswith("file:"):
        return LocalStore(Path(unquote(uri.removeprefix("file://"))))
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    settings = (stores or {}).get(bucket, BucketSettings())
    from pipeline.base.store.s3 import S3Store  # noqa: PLC0415

    return S3Store(bucket, prefix, settings)
