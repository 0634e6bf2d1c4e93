"""URI -> store, by a table of schemes. Settings are per bucket: two stores may need two endpoints and credentials."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pipeline.base.errors import InputError
from pipeline.base.store.local import LocalStore
from pipeline.base.store.protocol import BucketSettings, Store, Stores

_OTHER_SCHEMES = ("pipe", "exec", "http", "https", "gs")  # a path that begins with one of these is meant as a URI


@dataclass(frozen=True)
class Scheme:
    """How URIs of one scheme are written, and how the store of one is opened.

    ``normalise``: what follows ``scheme://`` -> the URI; raises InputError. ``open``: a normalised URI -> its store,
    without a connection; the library of the store is imported there, not before.
    """

    example: str
    normalise: Callable[[str], str]
    open: Callable[[str, Stores], Store]


def normalise_uri(text: str) -> str:
    """A workspace or source URI: ``s3://bucket/prefix`` or ``file:///path``; plain paths become the latter.

    Raises InputError for other schemes, credentials inside the URI, and ``..`` in an s3 key.
    """
    scheme, slashes, rest = text.partition("://")
    is_path = not slashes and not re.match(rf"({'|'.join([*SCHEMES, *_OTHER_SCHEMES])}):", text)
    if is_path:
        return _path_uri(text)
    if not slashes or scheme not in SCHEMES:
        examples = ", ".join(known.example for known in SCHEMES.values())
        raise InputError(f"{scheme.partition(':')[0]}: URIs like this are not read", f"use {examples} or a plain path")
    return SCHEMES[scheme].normalise(rest)


def split_uri(uri: str) -> tuple[str, str]:
    """(parent, last name) of a normalised URI. Raises InputError for a bucket or the root: they have no parent."""
    parent, _, name = uri.rstrip("/").rpartition("/")
    if parent == "" or parent.endswith(":/"):
        raise InputError(f"{uri} names no object inside a folder or bucket", "add its name")
    if parent == "file://":
        return "file:///", unquote(name)
    return parent, unquote(name) if uri.startswith("file:") else name


def open_store(uri: str, stores: Stores | None = None) -> Store:
    """The store at *uri*. Opens no connection yet, and makes no folder."""
    uri = normalise_uri(uri)
    return SCHEMES[uri.partition(":")[0]].open(uri, stores or {})


def _file_uri(rest: str) -> str:
    if not rest.startswith("/"):
        raise InputError(f"{f'file://{rest}'!r} names a host, not a path", "write three slashes: file:///path")
    return _path_uri(unquote(rest))


def _path_uri(path: str) -> str:
    if not path or "\0" in path:
        raise InputError("an empty path", "name a folder, file or s3:// URI")
    try:
        return Path(path).expanduser().absolute().as_uri()
    except RuntimeError:
        raise InputError(f"{path!r}: no home folder of that user", "write the path out") from None


def _open_folder(uri: str, stores: Stores) -> Store:
    return LocalStore(Path(unquote(uri.removeprefix("file://"))))


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


def _open_bucket(uri: str, stores: Stores) -> Store:
    from pipeline.base.store.s3 import S3Store  # noqa: PLC0415 - boto3 takes a while, and most workspaces are folders

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return S3Store(bucket, prefix, stores.get(bucket, BucketSettings()))


SCHEMES = {
    "s3": Scheme("s3://bucket/prefix", _s3_uri, _open_bucket),
    "file": Scheme("file:///path", _file_uri, _open_folder),
}
