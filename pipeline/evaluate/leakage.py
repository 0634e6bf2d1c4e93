"""The rule against leakage: no image of the training dataset may be in the test dataset.

Compared are the digests of the images' bytes that the shards' indexes hold. Names and keys do not count: the same image
has another key in another corpus. The same picture encoded anew has other bytes, and is not detected.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.base.digests import sha256_hex
from pipeline.base.disk_table import read_parquet
from pipeline.base.errors import DamageError, InputError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.recipe import Task
from pipeline.records.dataset import dataset_prefix, read_dataset_card
from pipeline.stream.dataset import DatasetReader

_MAX_PAIRS = 256  # pairs of datasets whose answer a process remembers
_NO_PREFIXES: NDArray[np.uint64] = np.empty(0, np.uint64)


def refuse_leak(workspace: Store, name: str, task: Task) -> None:
    """Raise InputError when the datasets of the task called *name* share images."""
    try:
        refuse_shared_images(workspace, task.train, task.test)
    except InputError as error:
        raise InputError(f"task {name}: {error.message}", error.way_out) from None


def refuse_shared_images(workspace: Store, train: str, test: str) -> None:
    """Raise InputError when the datasets share images, with how many, and an example.

    In memory are eight bytes for each image of the smaller dataset, and one index. A process asks the store once for
    each pair of datasets.
    """
    cards = [read_dataset_card(workspace, name) for name in (train, test)]
    refusals = _refusals(workspace.uri)
    pair = (train, cards[0].digest, test, cards[1].digest)
    if pair not in refusals:
        if len(refusals) >= _MAX_PAIRS:
            refusals.clear()
        readers = [DatasetReader(workspace, name) for name in (train, test)]
        refusals[pair] = _refusal(workspace, *sorted(readers, key=lambda reader: reader.card.num_samples))
    if refusals[pair]:
        raise InputError(
            f"{train} and {test} share {refusals[pair]}: scores would mean nothing",
            "take them out of one of the two datasets, and shard it again",
        )


@lru_cache(maxsize=8)
def _refusals(_workspace_uri: str) -> dict[tuple[str, str, str, str], str]:
    """What was found in this process, by (train, its digest, test, its digest)."""
    return {}


def _refusal(workspace: Store, smaller: DatasetReader, larger: DatasetReader) -> str:
    """A description of the images that both have; "" for none."""
    of_smaller = [_prefixes(digests) for digests, _ in _indexes(workspace, smaller)]
    prefixes = np.unique(np.concatenate(of_smaller or [_NO_PREFIXES]))
    candidates: dict[str, str] = {}  # of the larger one, those with such a prefix: the first key by digest
    for digests, keys in _indexes(workspace, larger):
        for row in np.flatnonzero(np.isin(_prefixes(digests), prefixes, assume_unique=False)).tolist():
            candidates.setdefault(digests[row].as_py(), keys[row].as_py())
    shared: set[str] = set()
    example = ""
    if candidates:
        for digests, keys in _indexes(workspace, smaller):
            for row, digest in enumerate(digests.to_pylist()):
                if digest in candidates and digest not in shared:
                    shared.add(digest)
                    example = example or (
                        f"{smaller.card.name}/{keys[row].as_py()} is {larger.card.name}/{candidates[digest]}"
                    )
    return f"{len(shared)} image{'s' if len(shared) > 1 else ''} ({example})" if shared else ""


def _prefixes(digests: pa.Array) -> NDArray[np.uint64]:
    """The first eight bytes of each hex digest, as a number."""
    joined = b"".join(bytes.fromhex(digest[:16]) for digest in digests.to_pylist())
    return np.frombuffer(joined, ">u8").astype(np.uint64)


def _indexes(workspace: Store, reader: DatasetReader) -> Iterator[tuple[pa.Array, pa.Array]]:
    """For each shard the digests of its images, and their keys. Raises DamageError."""
    for entry in reader.shards:
        index_key = f"{dataset_prefix(reader.card.name)}/{entry.name.removesuffix('.tar')}.parquet"
        try:
            data = workspace.read(index_key)
        except FileNotFoundError:
            raise DamageError(f"{index_key} is missing", "run vitpipe verify") from None
        if sha256_hex(data) != entry.index_sha256:
            raise DamageError(f"{index_key} is damaged", "run vitpipe verify")
        table = read_parquet(data, ["sha256", "key"])
        yield table["sha256"].combine_chunks(), table["key"].combine_chunks()
