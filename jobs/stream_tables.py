"""What ``jobs.stream`` found, for people."""

from __future__ import annotations

from typing import Any

from jobs.console import print_table, print_text
from pipeline.base.quantities import format_bytes


def print_bench(found: dict[str, Any]) -> None:
    """Stages, the loader as a whole, shuffle quality, and what limits the stream."""
    rank = f"one rank of {found['world_size']}, {found['batch_of_a_rank']:,} samples of each batch"
    print_table(f"{found['name']}: {rank}", ("stage, one process", "samples/s", "us a sample", "read"), _stages(found))
    loaders = [(str(one["workers"]), f"{one['samples_per_second']:,.0f}") for one in found["loader"]]
    print_table(f"The loader as a whole, {found['cores']} cores", ("workers", "samples/s"), loaders)
    title = "Shuffling within an epoch, in parts of what a permutation of all samples does"
    print_table(title, _QUALITIES, [_quality(one) for one in found["shuffle"]])
    print_text(found["bottleneck"]["told"])


def _stages(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for stage in found["stages"]:
        speed, cost = stage["samples_per_second"], stage["microseconds_per_sample"]
        read = f"{format_bytes(int(stage['bytes_per_second']))}/s" if stage["bytes_per_second"] else ""
        rows.append((stage["stage"], f"{speed:,.0f}", "" if cost is None else f"{cost:,.1f}", read))
    return rows


_QUALITIES = (
    "window",
    "distance of neighbours",
    "of samples of a shard",
    "neighbours in one batch",
    "shards of a batch",
    "largest share",
    "shards open",
)


def _quality(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{one['window']:,}{' (chosen)' if one['is_chosen'] else ''}",
        f"{one['neighbour_distance']:.3g}",
        f"{one['shard_distance']:.3g}",
        f"{one['close_neighbours']:.3g} times",
        f"{one['shards_of_a_batch']:.0f} (by chance {one['shards_by_chance']:.0f})",
        f"{one['largest_share']:.1%}",
        f"{one['open_shards']:,}",
    )


def print_audit(found: dict[str, Any]) -> None:
    """The history that the newest weights have seen, and what was proven of it or the first problems."""
    segments = [
        (one["attempt"], f"{one['start']:,}", f"{one['stop']:,}", str(one["world_size"])) for one in found["segments"]
    ]
    print_table(f"{found['run']}: what its newest weights have seen", ("attempt", "from", "to", "ranks"), segments)
    for problem in found["problems"]:
        print_text(problem)
    if not found["is_exact"]:
        print_text(f"{found['num_problems']:,} problems" + (", the first above" if found["problems"] else ""))
        return
    epochs = ", ".join(f"{count} whole epochs of {name}" for name, count in found["whole_epochs"].items())
    print_text(
        f"proven: positions 0 to {found['end']:,} were each handed out once, with the sample that the order names"
    )
    print_text(f"{epochs}, each sample once in each; {found['num_replaced']:,} damaged samples replaced")
