"""The files below a folder of this machine, in the order of their keys, with one stat for each; names as text.

Links to files are followed, and links to folders too, wherever they lead: data sets are often put together from links.
A link to a folder is followed once, by the first name that leads to it, and never to a folder that it lies in. So every
walk ends, and links cannot multiply a tree. Every file is listed under each name that it has on that way.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.base.store.protocol import ObjectInfo
from pipeline.records.corpus import Reject

_HIDDEN = (".", "__MACOSX")  # what hidden names begin with
_Identity = tuple[int, int]  # device and inode: the same for every name of a folder


def walk(root: Path, matches: Callable[[str], bool], *, hidden: bool = False) -> Iterator[ObjectInfo | Reject]:
    """Every visible file below *root* whose name *matches*; a Reject for one that is no file or has gone.

    *hidden*: those that are not visible too. Memory holds the names of the folders on the way, not the whole tree.
    Raises InputError for a folder that cannot be listed.
    """
    followed: set[_Identity] = set()
    takes = matches if hidden else lambda name: not name.startswith(_HIDDEN) and matches(name)
    above = _identity(os.stat(root))
    stack = [_list_folder(root, "", frozenset({above}), followed, takes, hidden)]
    while stack:
        folder = stack[-1]
        if not folder.names:
            stack.pop()
            continue
        name, ancestors = folder.names.pop()
        if ancestors is None:
            yield _inspect(root, f"{folder.prefix}{name}")
        else:
            stack.append(_list_folder(root, f"{folder.prefix}{name}/", ancestors, followed, takes, hidden))


@dataclass
class _FolderRest:
    """What is left of one folder, last first: names, with the folders above it for one that is a folder."""

    prefix: str
    names: list[tuple[str, frozenset[_Identity] | None]] = field(default_factory=list)


def _list_folder(
    root: Path,
    prefix: str,
    above: frozenset[_Identity],
    followed: set[_Identity],
    takes: Callable[[str], bool],
    hidden: bool,
) -> _FolderRest:
    folder = _FolderRest(prefix)
    try:
        with os.scandir(root / prefix) as scanned:
            entries = sorted(
                (entry for entry in scanned if hidden or not entry.name.startswith(_HIDDEN)), key=_sort_key
            )
    except OSError as error:
        path = printable(f"{root}/{prefix}"[:300])
        raise InputError(f"{path} cannot be listed: {error.strerror}", "check its permissions") from None
    for entry in reversed(entries):
        if entry.is_dir(follow_symlinks=False):
            folder.names.append((entry.name, above | {(entry.stat().st_dev, entry.inode())}))
        elif entry.is_symlink() and os.path.isdir(entry.path):
            ancestors = _follow(entry, above, followed)
            if ancestors is not None:
                folder.names.append((entry.name, ancestors))
        elif takes(entry.name):
            folder.names.append((entry.name, None))
    return folder


def _sort_key(entry: os.DirEntry[str]) -> str:
    """Sorts *entry* to the position of the keys below it among the others: "a.b" before "a/b"."""
    return f"{entry.name}/" if os.path.isdir(entry.path) else entry.name  # false, not an error, for a link to itself


def _follow(
    link: os.DirEntry[str], above: frozenset[_Identity], followed: set[_Identity]
) -> frozenset[_Identity] | None:
    """The folders above those that *link* leads to, or None when it is not to be followed."""
    own, target = _identity(link.stat(follow_symlinks=False)), _identity(link.stat())
    if target in above or own in followed:
        return None
    followed.add(own)
    return above | {target}


def _inspect(root: Path, key: str) -> ObjectInfo | Reject:
    try:
        status = os.stat(f"{root}/{key}")
    except OSError as error:
        is_link = os.path.islink(f"{root}/{key}")
        return Reject(key, "unreadable", "broken link" if is_link else str(error.strerror))
    if not stat.S_ISREG(status.st_mode):
        return Reject(key, "unreadable", "not a regular file")
    return ObjectInfo(key, status.st_size, _etag_of(status))


def _etag_of(status: os.stat_result) -> str:
    """The etag that the store of local files gives a file of this *status*."""
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def is_hidden(key: str) -> bool:
    """Whether any part of *key* is hidden, or is what macOS adds to archives."""
    return any(part.startswith(_HIDDEN) for part in key.split("/"))


def is_unicode(name: str) -> bool:
    """Whether *name* can be stored as it is: names of files may hold bytes that are no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """*name* as text that can be stored: bytes of a file name that are no UTF-8 are written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
