"""URI -> corpus: which kind of source is it, and is there anything in it at all."""

from __future__ import annotations

from pipeline.base.errors import InputError
from pipeline.base.store import ObjectInfo, Store, Stores, normalise_uri, open_store, split_uri
from pipeline.corpus.sources.folder import IMAGE_SUFFIXES, list_folder, suffix_of
from pipeline.corpus.sources.parquet import list_parquet
from pipeline.records.corpus import Corpus


def open_corpus(uri: str, stores: Stores | None = None) -> Corpus:
    """List the corpus at *uri*: a folder of images, a parquet file, or a folder of parquet files; local or S3.

    Raises InputError when it is missing, or holds no image and no parquet file.
    """
    store, objects = _objects_at(normalise_uri(uri), stores)
    tables = [info for info in objects if suffix_of(info.key) == "parquet"]
    if tables:
        return list_parquet(store, tables)
    images = [info for info in objects if suffix_of(info.key) in IMAGE_SUFFIXES]
    if images:
        return list_folder(store, images)
    kinds = ", ".join(sorted({suffix_of(info.key) or "no suffix" for info in objects}))
    raise InputError(
        f"no images in {uri}" + (f" (only: {kinds})" if objects else " (it is empty)"),
        f"expected parquet files, or images ({', '.join(sorted(suffix for suffix in IMAGE_SUFFIXES if suffix))})",
    )


def _objects_at(uri: str, stores: Stores | None) -> tuple[Store, list[ObjectInfo]]:
    store = open_store(uri, stores)
    place = store.local_path("x")
    if place is not None and not place.parent.is_dir():
        parent, name = split_uri(uri)
        single = open_store(parent, stores)
        info = single.head(name)
        if info is None:
            raise InputError(f"{uri} does not exist", "name a folder, a parquet file or an s3:// prefix")
        return single, [info]
    if place is None and uri.endswith(".parquet"):
        parent, name = split_uri(uri)
        single = open_store(parent, stores)
        info = single.head(name)
        if info is not None:
            return single, [info]
    return store, [info for info in store.list() if not _hidden(info.key)]


def _hidden(key: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in key.split("/"))
