"""What ``jobs.dataset.describe`` found, as tables for people."""

from __future__ import annotations

from typing import Any

from jobs.console import print_table
from pipeline.base.quantities import format_bytes

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
