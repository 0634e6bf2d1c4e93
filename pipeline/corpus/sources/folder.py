"""Image folder: ``class/name.jpg`` at any depth. The class of an image is the folder that it lies in."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pipeline.base.store import ObjectInfo, Store
from pipeline.records.corpus import LISTING_SCHEMA, Corpus, Reject

# What may be an image by its name; what it is, its content decides. No suffix at all is looked into as well.
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff", ""})


def suffix_of(key: str) -> str:
    """The suffix of the last part of *key*, lower case, without its dot."""
    name = key.rpartition("/")[2]
    return name.rpartition(".")[2].lower() if "." in name else ""


class FolderReader:
    """Reads whole files from the source's store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader. The caller may go on after an OSError with the next entry."""
        return _Files(self._store, entries.column("file").to_pylist())


class _Files(Iterator[bytes | None]):
    """An iterator that survives an error of one item, which a generator would not."""

    def __init__(self, store: Store, keys: list[str]) -> None:
        self._store, self._keys = store, iter(keys)

    def __next__(self) -> bytes:
        return self._store.read(next(self._keys))


def list_folder(store: Store, images: list[ObjectInfo]) -> Corpus:
    """The corpus of the objects *images*. Images at the top of the source have no label."""
    rejects = tuple(Reject(_shown(info.key), "name-not-unicode") for info in images if _shown(info.key) != info.key)
    images = [info for info in images if _shown(info.key) == info.key]
    folders = [info.key.rpartition("/")[0] for info in images]
    class_names = tuple(sorted({folder for folder in folders if folder}))
    number = {name: index for index, name in enumerate(class_names)}
    keys = [info.key for info in images]
    listing = pa.table(
        {
            "origin": keys,
            "file": keys,
            "row": [-1] * len(keys),
            "num_bytes": [info.num_bytes for info in images],
            "labels": [[number[folder]] if folder else [] for folder in folders],
        },
        schema=LISTING_SCHEMA,
    )
    return Corpus(listing, class_names, FolderReader(store), rejects)


def _shown(key: str) -> str:
    """*key* as text that can be stored: bytes of a file name that are no UTF-8 are written as escapes."""
    return key.encode("utf-8", "backslashreplace").decode()
