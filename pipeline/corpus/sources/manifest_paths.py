"""What a manifest's row may point at. Its author may be somebody else than the one who runs the command.

Relative paths start at the manifest's folder and stay below it. A manifest that lies on this machine may name its
files; one that was read from a bucket may not. ``s3://`` objects may be named by both. Nothing is expanded, nothing is
run.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import unquote

from pipeline.base.errors import InputError
from pipeline.base.store import normalise_uri

_SCHEME = re.compile(r"(?i)(pipe|exec|file|s3|https?|ftp|gs|gcs|az|azure|hdfs|data):")


class RefusedPathError(ValueError):
    """A path that is not followed. Its text holds nothing of the path, which can hold a credential."""


def resolve(text: str, *, is_local: bool) -> str:
    """What *text* points at: a key below the manifest's folder, or a URI. Raises RefusedPathError."""
    if "\0" in text:
        raise RefusedPathError("it holds a zero byte")
    if "://" in text or _SCHEME.match(text):
        return _uri(text, is_local=is_local)
    if text.startswith("/"):
        if not is_local:
            raise RefusedPathError("a path of this machine, in a manifest from a bucket")
        return Path(posixpath.normpath(text)).as_uri()
    key = posixpath.normpath(text)
    if key == ".." or key.startswith("../"):
        raise RefusedPathError("it leads out of the manifest's folder")
    return key


def _uri(text: str, *, is_local: bool) -> str:
    scheme = text.partition(":")[0].lower()
    if scheme == "file" and not is_local:
        raise RefusedPathError("a path of this machine, in a manifest from a bucket")
    if scheme not in ("file", "s3"):
        raise RefusedPathError(f"{scheme[:12]}: URIs like this are not read")
    try:
        uri = normalise_uri(text)
    except InputError as error:
        raise RefusedPathError(error.what) from None
    if scheme == "s3" and uri.count("/") < 3:
        raise RefusedPathError("a bucket, not an object in it")
    return uri if scheme == "s3" else Path(posixpath.normpath(unquote(uri.removeprefix("file://")))).as_uri()
