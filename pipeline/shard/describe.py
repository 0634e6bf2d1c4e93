"""``vitpipe dataset``: a dataset's card as plain values, its contact sheet, DALI's indexes."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from pipeline.base.errors import DamageError
from pipeline.base.store.object_file import open_object
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store, Stores
from pipeline.records.dataset import DUPLICATES_TABLE, REJECTS_TABLE, DatasetCard, dataset_prefix, read_dataset_card


def describe(workspace: str, stores: Stores, name: str) -> dict[str, Any]:
    """Everything of a dataset's card, and what is counted out of its tables, as plain values.

    Raises InputError when there is no such dataset, DamageError when its card or a table is damaged.
    """
    card, target = _open(workspace, stores, name)
    duplicates = _count(target, DUPLICATES_TABLE, "reason")
    return {
        "workspace": workspace,
        **card.model_dump(mode="json", exclude={"class_names", "class_table", "statistics"}),
        **card.statistics.model_dump(mode="json", exclude={"label_counts"}),
        "classes": _classes(card),
        "balance": _balance(card),
        "rejects": _count(target, REJECTS_TABLE, "reason"),
        "duplicates": duplicates,
        "duplicates_with_other_labels": _count(target, DUPLICATES_TABLE, "labels_differ").get("True", 0),
    }


def _open(workspace: str, stores: Stores, name: str) -> tuple[DatasetCard, Store]:
    card = read_dataset_card(open_store(workspace, stores), name)
    return card, open_store(f"{workspace}/{dataset_prefix(name)}", stores)


def _count(target: Store, table: str, column: str) -> dict[str, int]:
    """How many rows have each value of *column*, the most frequent first. Holds a batch of rows at a time."""
    counts: Counter[str] = Counter()
    try:
        with open_object(target, table) as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=[column]):
                counts.update(str(value) for value in batch.column(0).to_pylist())
    except FileNotFoundError:
        raise DamageError(f"{target.uri}/{table} is missing", "shard the dataset again") from None
    except (OSError, ValueError):  # how pyarrow tells of bytes that are no parquet
        raise DamageError(f"{target.uri}/{table} is damaged", "shard the dataset again") from None
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _classes(card: DatasetCard) -> list[dict[str, Any]]:
    """Number, name and samples of each class; synset and parent where a class table gave them."""
    rows = [
        {"number": number, "name": name, "samples": count}
        for number, (name, count) in enumerate(zip(card.class_names, card.statistics.label_counts, strict=True))
    ]
    for row, entry in zip(rows, card.class_table, strict=False):
        row |= {"synset": entry.synset, "parent": entry.parent}
    return rows


def _balance(card: DatasetCard) -> dict[str, Any]:
    """How evenly labels fall on classes. ``effective_classes`` is exp(entropy): of equal classes, their number."""
    counts = card.statistics.label_counts
    total = sum(counts)
    if not total:
        return {"largest": 0, "smallest": 0, "empty": len(counts), "ratio": None, "effective_classes": 0.0}
    entropy = -sum(count / total * math.log(count / total) for count in counts if count)
    filled = [count for count in counts if count]
    return {
        "largest": max(filled),
        "smallest": min(filled),
        "empty": len(counts) - len(filled),
        "ratio": max(filled) / min(filled),
        "effective_classes": math.exp(entropy),
    }
