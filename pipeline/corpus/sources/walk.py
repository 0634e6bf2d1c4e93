"""The files below a folder of this machine, in the order of their keys, links followed, with one stat for each.

Links to files are followed, and links to folders too, wherever they lead: data sets are often put together from links.
A link to a folder is followed once, by the first name that leads to it, and never to a folder that it lies in; so every
walk ends, and links cannot multiply a tree. Every file is told under each name that it has on that way.
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

_HIDDEN = (".", "__MACOSX")
_Identity = tuple[int, int]


def is_hidden(key: str) -> bool:
    """Whether any part of *key* is hidden, or is what macOS adds to archives."""
    return any(part.startswith(_HIDDEN) for part in key.split("/"))


def walk(root: Path, wanted: Callable[[str], bool], *, hidden: bool = False) -> Iterator[ObjectInfo | Reject]:
    """Every visible file below *root* whose name is *wanted*; a Reject for one that is no file or has gone.

    *hidden*: those that are not visible too. Holds the names of the folders on the way, not the whole tree. Raises
    InputError for a folder that cannot be listed.
    """
    links: set[_Identity] = set()
    taken = wanted if hidden else lambda name: not name.startswith(_HIDDEN) and wanted(name)
    above = _identity(os.stat(root))
    waiting = [_names(root, "", frozenset({above}), links, taken, hidden)]
    while waiting:
        folder = waiting[-1]
        if not folder.items:
            waiting.pop()
            continue
        name, above_it = folder.items.pop()
        if above_it is None:
            yield _look(root, f"{folder.lead}{name}")
        else:
            waiting.append(_names(root, f"{folder.lead}{name}/", above_it, links, taken, hidden))


@dataclass
class _Folder:
    """What is left of one folder, last first: names, with the folders above it for one that is a folder."""

    lead: str
    items: list[tuple[str, frozenset[_Identity] | None]] = field(default_factory=list)


def _names(
    root: Path,
    lead: str,
    above: frozenset[_Identity],
    links: set[_Identity],
    wanted: Callable[[str], bool],
    hidden: bool,
) -> _Folder:
    found = _Folder(lead)
    try:
        with os.scandir(root / lead) as items:
            entries = sorted((item for item in items if hidden or not item.name.startswith(_HIDDEN)), key=_place)
    except OSError as error:
        where = f"{root}/{lead}"[:300].encode("utf-8", "backslashreplace").decode()
        raise InputError(f"{where} cannot be listed: {error.strerror}", "check its permissions") from None
    for item in reversed(entries):
        if item.is_dir(follow_symlinks=False):
            found.items.append((item.name, above | {(item.stat().st_dev, item.inode())}))
        elif item.is_symlink() and os.path.isdir(item.path):
            below = _follow(item, above, links)
            if below is not None:
                found.items.append((item.name, below))
        elif wanted(item.name):
            found.items.append((item.name, None))
    return found


def _place(item: os.DirEntry[str]) -> str:
    """What puts *item* where the keys below it stand among the others: "a.b" before "a/b"."""
    return f"{item.name}/" if os.path.isdir(item.path) else item.name  # false, not an error, for a link to itself


def _follow(link: os.DirEntry[str], above: frozenset[_Identity], links: set[_Identity]) -> frozenset[_Identity] | None:
    """The folders above those that *link* leads to, or None when it is not to be followed."""
    itself, target = _identity(link.stat(follow_symlinks=False)), _identity(link.stat())
    if target in above or itself in links:
        return None
    links.add(itself)
    return above | {target}


def _look(root: Path, key: str) -> ObjectInfo | Reject:
    try:
        status = os.stat(f"{root}/{key}")
    except OSError as error:
        link = os.path.islink(f"{root}/{key}")
        return Reject(key, "unreadable", "broken link" if link else str(error.strerror))
    if not stat.S_ISREG(status.st_mode):
        return Reject(key, "unreadable", "not a regular file")
    return ObjectInfo(key, status.st_size, etag_of(status))


def etag_of(status: os.stat_result) -> str:
    """The etag that the store of local files gives a file of this *status*."""
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino
