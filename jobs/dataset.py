"""``vitpipe dataset``: a dataset's card as plain values, its contact sheet, DALI's indexes."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.base.errors import DamageError, InputError
from pipeline.base.progress import Progress
from pipeline.base.store import Store, Stores, open_store
from pipeline.base.store.reading import open_object
from pipeline.records.dataset import (
    DUPLICATES_TABLE,
    REJECTS_TABLE,
    DatasetCard,
    dataset_prefix,
    read_dataset_card,
)


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


def sample(
    workspace: str, stores: Stores, name: str, out: str, count: int, seed: int, class_name: str | None
) -> dict[str, Any]:
    """Write a contact sheet of *count* samples to the PNG file *out*.

    Raises InputError when there is no such dataset or class, or *out* is no place for a PNG.
    """
    path = _local(out)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise InputError(f"{out} is not the name of a PNG file", "write --out sheet.png")
    card, target = _open(workspace, stores, name)
    number = None if class_name is None else _class_number(card, class_name)
    # Imported here: Pillow and what reads samples, which `show` does without.
    from pipeline.shard.pick import pick, read_picked  # noqa: PLC0415
    from pipeline.shard.sheet import draw_sheet  # noqa: PLC0415

    picked = read_picked(target, pick(target, card, count, seed, number))
    of_class = "" if class_name is None else f" of class {class_name!r}"
    total = card.num_samples if number is None else card.statistics.label_counts[number]
    told = f"{len(picked):,} of {total:,} samples{of_class}, seed {seed}"
    place = open_store(str(path.parent))
    place.put(path.name, draw_sheet(card, picked, told))
    return {"workspace": workspace, "name": name, "out": str(path), "samples": len(picked)}


def _class_number(card: DatasetCard, name: str) -> int:
    if name in card.class_names:
        number = card.class_names.index(name)
        if card.statistics.label_counts[number]:
            return number
        raise InputError(f"class {name!r} of {card.name} has no samples")
    near = difflib.get_close_matches(name, card.class_names, 1)
    way_out = f"did you mean {near[0]!r}?" if near else f"vitpipe dataset show {card.name} lists them"
    raise InputError(f"{card.name} has no class {name!r}", way_out)


def export_dali_indexes(workspace: str, stores: Stores, name: str, out: str, progress: Progress) -> dict[str, Any]:
    """Write DALI's index of each shard into the folder *out*. Raises InputError when there is no such dataset."""
    folder = _local(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{out} is a file", "name a folder: --out DIR")
    card, target = _open(workspace, stores, name)
    if target.local_path("x") == folder / "x":
        raise InputError(f"{out} is the dataset itself", "name another folder: what stands there is the card's")
    # Imported here: what writes shards, which `show` does without.
    from pipeline.shard.interchange import put_dali_indexes  # noqa: PLC0415

    num_files = put_dali_indexes(target, card, open_store(str(folder)), progress)
    return {"workspace": workspace, "name": name, "out": str(folder), "files": num_files}


def _local(out: str) -> Path:
    if "://" in out:
        raise InputError(f"{out} is not a path of this machine", "name a local one")
    return Path(out).expanduser().absolute()
