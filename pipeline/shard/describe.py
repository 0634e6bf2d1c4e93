"""A dataset as plain values: its card, and counts out of its tables of rejects and duplicates."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store.object_file import open_object
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store, Stores
from pipeline.records.dataset import DUPLICATES_TABLE, REJECTS_TABLE, DatasetCard, dataset_prefix, read_dataset_card


def describe(workspace: str, stores: Stores, name: str) -> dict[str, Any]:
    """Everything of a dataset's card, and what is counted out of its tables, as plain values.

    Raises InputError when there is no such dataset, DamageError when its card or a table is damaged.
    """
    card, target = open_dataset(workspace, stores, name)
    duplicates = _count_values(target, DUPLICATES_TABLE, "reason")
    return {
        "workspace": workspace,
        **card.model_dump(mode="json", exclude={"class_names", "class_table", "statistics"}),
        **card.statistics.model_dump(mode="json", exclude={"label_counts"}),
        "classes": _classes(card),
        "balance": _class_balance(card),
        "rejects": _count_values(target, REJECTS_TABLE, "reason"),
        "duplicates": duplicates,
        "duplicates_with_other_labels": _count_values(target, DUPLICATES_TABLE, "labels_differ").get("True", 0),
    }


def open_dataset(workspace: str, stores: Stores, name: str) -> tuple[DatasetCard, Store]:
    """The card of dataset *name* and the store of its folder. Raises InputError when there is no such dataset."""
    card = read_dataset_card(open_store(workspace, stores), name)
    return card, open_store(f"{workspace}/{dataset_prefix(name)}", stores)


def class_number(card: DatasetCard, name: str) -> int:
    """The number of the class *name*. Raises InputError when there is none, or it has no samples."""
    if name in card.class_names:
        number = card.class_names.index(name)
        if card.statistics.label_counts[number]:
            return number
        raise InputError(f"class {name!r} of {card.name} has no samples")
    near = difflib.get_close_matches(name, card.class_names, 1)
    way_out = f"did you mean {near[0]!r}?" if near else f"vitpipe dataset show {card.name} lists them"
    raise InputError(f"{card.name} has no class {name!r}", way_out)


def _count_values(target: Store, table: str, column: str) -> dict[str, int]:
    """How many rows have each value of *column*, the most frequent first. Holds a batch of rows at a time."""
    counts: Counter[str] = Counter()
    try:
        with open_object(target, table) as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=[column]):
                counts.update(str(value) for value in batch.column(0).to_pylist())
    except FileNotFoundError:
        raise DamageError(f"{target.uri}/{table} is missing", "shard the dataset again") from None
    except (OSError, ValueError):  # pyarrow's, for bytes that are no parquet
        raise DamageError(f"{target.uri}/{table} is damaged", "shard the dataset again") from None
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _classes(card: DatasetCard) -> list[dict[str, Any]]:
    """Number, name and samples of each class; synset and parent where a class table gave them."""
    rows = [
        {"number": number, "name": name, "samples": count}
        for number, (name, count) in enumerate(zip(card.class_names, card.statistics.label_counts, strict=True))
    ]
    for row, entry in zip(rows, card.class_table, strict=False):
        row |= {"synset": entry.synset, "parent": entry.parent}
    return rows


def _class_balance(card: DatasetCard) -> dict[str, Any]:
    """How evenly labels fall on classes. ``effective_classes`` is exp(entropy): K for K classes of equal size."""
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
