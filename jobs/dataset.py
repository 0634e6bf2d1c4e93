"""``vitpipe dataset``: a dataset's card as plain values and as tables, its contact sheet, DALI's indexes."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.console import print_table
from pipeline.base.errors import DamageError, InputError
from pipeline.base.progress import Progress
from pipeline.base.quantities import format_bytes
from pipeline.base.store import Store, Stores, open_store
from pipeline.base.store.reading import open_object
from pipeline.records.dataset import (
    DUPLICATES_TABLE,
    REJECTS_TABLE,
    DatasetCard,
    dataset_prefix,
    read_dataset_card,
)

_SHOWN_CLASSES = 20  # more of them, and people get the ends of the list
_SHOWN_AT_AN_END = 8


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


def print_description(found: dict[str, Any]) -> None:
    """What ``describe`` found, as tables."""
    facts = [*_facts_of_counts(found), *_facts_of_images(found), *_facts_of_origin(found)]
    print_table(f"{found['name']} in {found['workspace']}", ("dataset", ""), facts)
    if found["classes"]:
        _print_classes(found)
    for key, title in (("rejects", "Rejected"), ("duplicates", "Duplicates")):
        if found[key]:
            rows = [(reason, f"{count:,}", _share(count, found["num_input"])) for reason, count in found[key].items()]
            print_table(title, ("reason", "images", "of input"), rows)


def _facts_of_counts(found: dict[str, Any]) -> list[tuple[str, str]]:
    told = (
        f"{found['num_input']:,} = {found['num_samples']:,} written + {found['num_rejected']:,} rejected"
        f" + {found['num_duplicates']:,} duplicates"
    )
    facts = [("input", told)]
    if found["num_duplicates"]:
        facts.append(("", f"{found['duplicates_with_other_labels']:,} duplicates had other labels than what was kept"))
    facts.append(("shards", f"{found['num_shards']:,}, {format_bytes(found['num_bytes'])}"))
    balance = found["balance"]
    classes = f"{len(found['classes']):,}" + (f", {balance['empty']:,} of them empty" if balance["empty"] else "")
    facts.append(("classes", classes))
    if balance["ratio"] is not None:
        even = f"as even as {balance['effective_classes']:.1f} equal classes"
        facts.append(("balance", f"largest / smallest = {balance['ratio']:.3g}; {even}"))
    if found["num_multi_label"]:
        facts.append(("several labels", f"{found['num_multi_label']:,} samples"))
    return facts


def _facts_of_images(found: dict[str, Any]) -> list[tuple[str, str]]:
    total = found["num_samples"]
    sides = [
        (f"{axis}, px", "{} to {}, mean {:.1f}".format(*(found[f"{axis}_{what}"] for what in ("min", "max", "mean"))))
        for axis in ("width", "height")
    ]
    facts = [
        ("formats", _histogram(found["formats"], total)),
        *sides,
        ("short side, px", _histogram({_octave(edge): n for edge, n in found["short_sides"].items()}, total)),
        ("width / height", _histogram({f">= {edge}": n for edge, n in found["aspects"].items()}, total)),
    ]
    if found["channel_mean"] is None:
        return [*facts, ("colours", "not known: images were checked by their headers only")]
    for what in ("mean", "std"):
        values = "  ".join(f"{value:.2f}" for value in found[f"channel_{what}"])
        facts.append((f"{what} of R, G, B", f"{values}  (of 255)"))
    return facts


def _facts_of_origin(found: dict[str, Any]) -> list[tuple[str, str]]:
    made_of = dict(found["made_of"])
    facts = []
    split = made_of.pop("split", None)
    if isinstance(split, dict):
        facts.append(("split", _settings(split)))
    facts += [(f"made of: {what}", _settings(value)) for what, value in made_of.items()]
    facts += [
        ("recipe", _settings(found["recipe"])),
        ("fingerprint", found["fingerprint"]),
        ("digest", found["digest"]),
    ]
    return facts


def _settings(value: Any) -> str:
    """*value* as a person writes it: ``a=1, b=(c=2)``."""
    if isinstance(value, dict):
        return ", ".join(
            f"{key}=({_settings(item)})" if isinstance(item, dict | list) else f"{key}={item}"
            for key, item in value.items()
        )
    if isinstance(value, list):
        return "; ".join(_settings(item) for item in value)
    return str(value)


def _octave(edge: str) -> str:
    return f"{edge}-{2 * int(edge) - 1}" if int(edge) > 1 else "1"


def _histogram(counts: dict[str, int], total: int) -> str:
    return ",  ".join(f"{what}: {count:,} ({_share(count, total)})" for what, count in counts.items())


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.3g} %"


def _print_classes(found: dict[str, Any]) -> None:
    """All classes by size, or both ends of that list when they are many."""
    classes = sorted(found["classes"], key=lambda row: (-row["samples"], row["number"]))
    columns = ("class", "name", "samples", "of labels", *(("synset", "parent") if "synset" in classes[0] else ()))
    total = max(1, sum(row["samples"] for row in classes))
    rows = [
        (
            str(row["number"]),
            row["name"],
            f"{row['samples']:,}",
            _share(row["samples"], total),
            *(row[key] for key in columns[4:]),
        )
        for row in classes
    ]
    title = "Classes"
    if len(rows) > _SHOWN_CLASSES:
        left_out = len(rows) - 2 * _SHOWN_AT_AN_END
        between = ("...", f"({left_out:,} more; all with --json)", *("" for _ in columns[2:]))
        rows = [*rows[:_SHOWN_AT_AN_END], between, *rows[-_SHOWN_AT_AN_END:]]
        title = f"Classes: the {_SHOWN_AT_AN_END} largest and the {_SHOWN_AT_AN_END} smallest"
    print_table(title, columns, rows)


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
