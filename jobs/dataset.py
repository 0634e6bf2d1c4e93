"""``vitpipe dataset``: show a dataset's card, write a contact sheet of its samples, write DALI's indexes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.base.console import make_progress, print_result, print_table, print_text
from jobs.base.entrypoint import main, new_app
from jobs.base.options import Debug, Endpoint, Json, Workspace, require_workspace, stores_of
from pipeline.base.errors import InputError
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Stores
from pipeline.base.units import format_bytes
from pipeline.shard.contact_sheet import draw_samples, read_samples, render_contact_sheet
from pipeline.shard.dali import put_dali_indexes
from pipeline.shard.describe import class_number, describe, open_dataset

_SHOWN_CLASSES = 20  # with more of them, people get the ends of the list
_SHOWN_AT_AN_END = 8
_Facts = list[tuple[str, str]]  # name, text

app = new_app(no_args_is_help=True, help="Look at a dataset: show, sample, dali-index.")
Name = Annotated[str, typer.Argument(help="name of the dataset")]


@app.command()
def show(
    name: Name, workspace: Workspace = None, endpoint: Endpoint = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Print the card of a dataset: counts, classes and their balance, sizes, colours, what was left out and why."""
    values = describe(require_workspace(workspace), stores_of(workspace, endpoint), name)
    print_result(as_json, values, lambda: _print_description(values))


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
    uri, stores = require_workspace(workspace), stores_of(workspace, endpoint)
    result = _write_sample(uri, stores, name, out, count, seed, class_name)
    print_result(as_json, result, lambda: print_text(f"{result['samples']} samples of {name}: {result['out']}"))


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
    uri, stores = require_workspace(workspace), stores_of(workspace, endpoint)
    result = _write_dali_indexes(uri, stores, name, out, make_progress())
    print_result(as_json, result, lambda: print_text(f"{result['files']} indexes: {result['out']}"))


def _write_sample(
    workspace: str, stores: Stores, name: str, out: str, count: int, seed: int, class_name: str | None
) -> dict[str, Any]:
    """Write a contact sheet of *count* samples to the PNG file *out*.

    Raises InputError when there is no such dataset or class, or *out* cannot be a PNG.
    """
    path = _local(out)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise InputError(f"{out} is not the name of a PNG file", "write --out sheet.png")
    card, target = open_dataset(workspace, stores, name)
    number = None if class_name is None else class_number(card, class_name)
    samples = read_samples(target, draw_samples(target, card, count, seed, number))
    of_class = "" if class_name is None else f" of class {class_name!r}"
    total = card.num_samples if number is None else card.statistics.label_counts[number]
    description = f"{len(samples):,} of {total:,} samples{of_class}, seed {seed}"
    open_store(str(path.parent)).put(path.name, render_contact_sheet(card, samples, description))
    return {"workspace": workspace, "name": name, "out": str(path), "samples": len(samples)}


def _write_dali_indexes(workspace: str, stores: Stores, name: str, out: str, progress: Progress) -> dict[str, Any]:
    """Write DALI's index of each shard into the folder *out*. Raises InputError when there is no such dataset."""
    folder = _local(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{out} is a file", "name a folder: --out DIR")
    card, target = open_dataset(workspace, stores, name)
    if target.local_path("x") == folder / "x":
        raise InputError(f"{out} is the dataset itself", "name another folder: what stands there is the card's")
    num_files = put_dali_indexes(target, card, open_store(str(folder)), progress)
    return {"workspace": workspace, "name": name, "out": str(folder), "files": num_files}


def _local(out: str) -> Path:
    if "://" in out:
        raise InputError(f"{out} is not a path of this machine", "name a local one")
    return Path(out).expanduser().absolute()


def _print_description(values: dict[str, Any]) -> None:
    """What ``describe`` returned, as tables."""
    facts = [*_count_facts(values), *_image_facts(values), *_origin_facts(values)]
    print_table(f"{values['name']} in {values['workspace']}", ("dataset", ""), facts)
    if values["classes"]:
        _print_classes(values)
    for key, title in (("rejects", "Rejected"), ("duplicates", "Duplicates")):
        if values[key]:
            total = values["num_input"]
            rows = [(reason, f"{count:,}", _share(count, total)) for reason, count in values[key].items()]
            print_table(title, ("reason", "images", "of input"), rows)


def _count_facts(values: dict[str, Any]) -> _Facts:
    text = (
        f"{values['num_input']:,} = {values['num_samples']:,} written + {values['num_rejected']:,} rejected"
        f" + {values['num_duplicates']:,} duplicates"
    )
    facts = [("input", text)]
    if values["num_duplicates"]:
        facts.append(("", f"{values['duplicates_with_other_labels']:,} duplicates had other labels than what was kept"))
    facts.append(("shards", f"{values['num_shards']:,}, {format_bytes(values['num_bytes'])}"))
    balance = values["balance"]
    classes = f"{len(values['classes']):,}" + (f", {balance['empty']:,} of them empty" if balance["empty"] else "")
    facts.append(("classes", classes))
    if balance["ratio"] is not None:
        even = f"as even as {balance['effective_classes']:.1f} equal classes"
        facts.append(("balance", f"largest / smallest = {balance['ratio']:.3g}; {even}"))
    if values["num_multi_label"]:
        facts.append(("several labels", f"{values['num_multi_label']:,} samples"))
    return facts


def _image_facts(values: dict[str, Any]) -> _Facts:
    total = values["num_samples"]
    sides = [
        (f"{axis}, px", "{} to {}, mean {:.1f}".format(*(values[f"{axis}_{end}"] for end in ("min", "max", "mean"))))
        for axis in ("width", "height")
    ]
    facts = [
        ("formats", _histogram(values["formats"], total)),
        *sides,
        ("short side, px", _histogram({_octave(edge): n for edge, n in values["short_sides"].items()}, total)),
        ("width / height", _histogram({f">= {edge}": n for edge, n in values["aspects"].items()}, total)),
    ]
    if values["channel_mean"] is None:
        return [*facts, ("colours", "not known: images were checked by their headers only")]
    for statistic in ("mean", "std"):
        channels = "  ".join(f"{value:.2f}" for value in values[f"channel_{statistic}"])
        facts.append((f"{statistic} of R, G, B", f"{channels}  (of 255)"))
    return facts


def _origin_facts(values: dict[str, Any]) -> _Facts:
    provenance = dict(values["made_of"])
    facts = []
    split = provenance.pop("split", None)
    if isinstance(split, dict):
        facts.append(("split", _settings(split)))
    facts += [(f"made of: {kind}", _settings(value)) for kind, value in provenance.items()]
    facts += [
        ("recipe", _settings(values["recipe"])),
        ("fingerprint", values["fingerprint"]),
        ("digest", values["digest"]),
    ]
    return facts


def _settings(value: Any) -> str:
    """*value* as a person writes it: ``a=1, b=(c=2)``."""
    if isinstance(value, dict):
        return ", ".join(
            f"{key}=({_settings(inner)})" if isinstance(inner, dict | list) else f"{key}={inner}"
            for key, inner in value.items()
        )
    if isinstance(value, list):
        return "; ".join(_settings(inner) for inner in value)
    return str(value)


def _octave(edge: str) -> str:
    return f"{edge}-{2 * int(edge) - 1}" if int(edge) > 1 else "1"


def _histogram(counts: dict[str, int], total: int) -> str:
    return ",  ".join(f"{kind}: {count:,} ({_share(count, total)})" for kind, count in counts.items())


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.3g} %"


def _print_classes(values: dict[str, Any]) -> None:
    """All classes by size, or both ends of that list when they are many."""
    classes = sorted(values["classes"], key=lambda row: (-row["samples"], row["number"]))
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


if __name__ == "__main__":
    main(app)
