"""SourceLocation: a store and a key that were named as a source, and which files are there at first sight."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from pipeline.base.errors import InputError
from pipeline.base.store.local import LocalStore
from pipeline.base.store.open import normalise_uri, open_store, split_uri
from pipeline.base.store.protocol import ObjectInfo, Store, Stores
from pipeline.corpus.sources.walk import is_hidden, walk
from pipeline.records.corpus import Reject

# What may be an image by its name; its content decides what it is. A file without a suffix may be one, too.
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff", ""})
_NUM_PROBED = 1_000  # objects of a known suffix that show what a location holds
_MAX_SUFFIXES = 1_000  # different suffixes that are counted


def suffix_of(key: str) -> str:
    """The suffix of the last part of *key*, lower case, without its dot; ``tar.gz`` counts as one."""
    name = key.rpartition("/")[2].lower()
    if name.endswith(".tar.gz"):
        return "tar.gz"
    return name.rpartition(".")[2] if "." in name else ""


@dataclass(frozen=True)
class SourceLocation:
    """Objects of *store*: the one at *key*, or all of them when *key* is empty.

    ``suffixes`` counts those of the first objects, at least until 1,000 of them were of a suffix that is known.
    """

    uri: str
    store: Store
    key: str = ""
    stores: Stores | None = None
    suffixes: Mapping[str, int] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The URI of the store: relative names start there."""
        return self.store.uri

    def count(self, *suffixes: str) -> int:
        """How many of the first objects have one of *suffixes*."""
        return sum(self.suffixes.get(suffix, 0) for suffix in suffixes)

    def list(self, *suffixes: str) -> Iterator[ObjectInfo | Reject]:
        """The visible objects that have one of *suffixes* (any, if there are none); a Reject for what is no file."""

        def matches(name: str) -> bool:
            return not suffixes or suffix_of(name) in suffixes

        if self.key:
            info = self.store.head(self.key)
            yield info if info is not None else Reject(self.key, "unreadable", "it has gone")
        elif isinstance(self.store, LocalStore):
            yield from walk(self.store.root, matches)
        else:
            for info in self.store.list():
                if matches(info.key) and not is_hidden(info.key):
                    yield info

    def objects(self, *suffixes: str) -> Iterator[ObjectInfo]:
        """As ``list``, where every object counts. Raises InputError for what is no file."""
        for info in self.list(*suffixes):
            if isinstance(info, Reject):
                raise InputError(f"{self.folder}/{info.origin} cannot be read: {info.detail}", "mend or remove it")
            yield info


def probe_location(uri: str, stores: Stores | None, containers: Collection[str] = ()) -> SourceLocation:
    """The location that *uri* names. Raises InputError when there is nothing.

    *containers*: suffixes that show what is there, beside those of images.
    """
    uri = normalise_uri(uri)
    store = open_store(uri, stores)
    if isinstance(store, LocalStore):
        if os.path.isdir(store.root):
            return _with_suffixes(SourceLocation(uri, store, stores=stores), containers)
        return _single_object(uri, stores)
    if suffix_of(uri) and uri.count("/") > 2:  # what is named like a file may be a prefix all the same
        try:
            return _single_object(uri, stores)
        except InputError:
            pass
    return _with_suffixes(SourceLocation(uri, store, stores=stores), containers)


def _single_object(uri: str, stores: Stores | None) -> SourceLocation:
    parent, name = split_uri(uri)
    store = open_store(parent, stores)
    if store.head(name) is None:
        raise InputError(f"{uri} does not exist", "name a folder, a file or an s3:// prefix")
    return SourceLocation(uri, store, name, stores, {suffix_of(name): 1})


def _with_suffixes(location: SourceLocation, containers: Collection[str]) -> SourceLocation:
    known = {*containers, *IMAGE_SUFFIXES} - {""}
    counts: Counter[str] = Counter()
    num_known = 0
    for info in location.list():
        suffix = suffix_of(info.key if isinstance(info, ObjectInfo) else info.origin)
        num_known += suffix in known
        if suffix in counts or len(counts) < _MAX_SUFFIXES:
            counts[suffix] += 1
        if num_known >= _NUM_PROBED:
            break
    return replace(location, suffixes=counts)


def unreadable_error(location: SourceLocation, info: ObjectInfo, error: OSError) -> InputError:
    """What to raise for an object of many images that cannot be read: one reject for all of them would hide them."""
    reason = error.strerror or type(error).__name__
    return InputError(f"{location.folder}/{info.key} cannot be read: {reason}", "mend or remove it")
