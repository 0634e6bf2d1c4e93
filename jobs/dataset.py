"""``vitpipe dataset``: a dataset's card as plain values, its contact sheet, DALI's indexes."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.base.console import make_progress, print_table, print_text
from jobs.base.entrypoint import main, new_app
from jobs.base.options import Debug, Endpoint, Json, Workspace, print_result, require_workspace, stores_of
from pipeline.base.errors import InputError
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Stores
from pipeline.base.units import format_bytes
from pipeline.records.dataset import DatasetCard
from pipeline.shard.describe import _open


def write_sample(
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
    from pipeline.shard.contact_sheet import (
        draw_samples,
        read_picked,
        render_contact_sheet,
    )

    picked = read_picked(target, draw_samples(target, card, count, seed, number))
    of_class = "" if class_name is None else f" of class {class_name!r}"
    total = card.num_samples if number is None else card.statistics.label_counts[number]
    told = f"{len(picked):,} of {total:,} samples{of_class}, seed {seed}"
    place = open_store(str(path.parent))
    place.put(path.name, render_contact_sheet(card, picked, told))
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
    from pipeline.shard.dali import put_dali_indexes

    num_files = put_dali_indexes(target, card, open_store(str(folder)), progress)
    return {"workspace": workspace, "name": name, "out": str(folder), "files": num_files}


def _local(out: str) -> Path:
    if "://" in out:
        raise InputError(f"{out} is not a path of this machine", "name a local one")
    return Path(out).expanduser().absolute()


_SHOWN_CLASSES = 20  # more of them, and people get the ends of the list
_SHOWN_AT_AN_END = 8


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
            _printable(row["name"]),
            f"{row['samples']:,}",
            _share(row["samples"], total),
            *(_printable(row[key]) for key in columns[4:]),
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


def _printable(text: str) -> str:
    """*text* without what would move the cursor or break the line: names of classes are names of folders."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


app = new_app(no_args_is_help=True, help="Look at a dataset: show, sample, dali-index.")
Name = Annotated[str, typer.Argument(help="name of the dataset")]


@app.command()
def show(
    name: Name, workspace: Workspace = None, endpoint: Endpoint = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Print the card of a dataset: counts, classes and their balance, sizes, colours, what was left out and why."""
    from pipeline.shard.describe import describe

    found = describe(require_workspace(workspace), stores_of(workspace, endpoint), name)
    print_result(as_json, found, lambda: print_description(found))


@app.command()
def sample(
    name: Name,
    out: Annotated[str, typer.Option(help="PNG file to write")],
    workspace: Workspace = None,
    count: Annotated[int, typer.Option(min=1, max=1_000, help="samples to show")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="which samples: any of the dataset, each as likely")] = 0,
    class_name: Annotated[str | None, typer.Option("--class", help="samples of this class only")] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a contact sheet of samples drawn at random. Reads only the samples it shows."""

    found = write_sample(
        require_workspace(workspace), stores_of(workspace, endpoint), name, out, count, seed, class_name
    )
    print_result(as_json, found, lambda: print_text(f"{found['samples']} samples of {name}: {found['out']}"))


@app.command("dali-index")
def dali_index(
    name: Name,
    out: Annotated[str, typer.Option(help="folder to write shard-000000.idx and so on to")],
    workspace: Workspace = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the index that DALI's webdataset reader wants of each shard. Reads no shard.

    Give DALI's `readers.webdataset` the tars as paths and these files as index_paths, in the same order.
    """

    found = export_dali_indexes(
        require_workspace(workspace), stores_of(workspace, endpoint), name, out, make_progress()
    )
    print_result(as_json, found, lambda: print_text(f"{found['files']} indexes: {found['out']}"))


if __name__ == "__main__":
    main(app)
