"""How well the order shuffles within an epoch, in parts of what a permutation of all samples does; computed, no data.

Shards of 2,330 samples, which are 256 MB of ImageNet, and of 10,000 in the largest layout. Distance: how far apart
consecutive rows of a shard, or any two samples of one, end up on average. In one batch: how often consecutive rows
are less than a batch apart, times what chance gives. Open: the most shards that all ranks together draw from at a time.
Shards hold samples that were drawn from all of the corpus when they were written, so a batch of few shards is still a
fair sample of it; what a small window costs is that samples keep some of their company from epoch to epoch.
"""

from __future__ import annotations

from pipeline.stream.shuffle_quality import ShuffleQuality, shuffle_quality

_WINDOWS = (1_000, 10_000, 100_000, 1_000_000)
_LAYOUTS = {  # shards, samples in each, partitions, batch
    "1.28 million, P = 8, batch 4,096": (550, 2_330, 8, 4_096),
    "1.28 million, P = 64, batch 4,096": (550, 2_330, 64, 4_096),
    "14 million, P = 64, batch 4,096": (6_000, 2_330, 64, 4_096),
    "1,000 million, P = 1,024, batch 32,768": (100_000, 10_000, 1_024, 32_768),
}
_HEAD = (
    "| samples | window | distance, neighbours | of a shard | in one batch | shards of a batch (by chance) | open |\n"
    "|---|---|---|---|---|---|---|\n"
)


def section() -> str:
    """The table, as Markdown."""
    return _HEAD + "".join(_lines(name, *layout) for name, layout in _LAYOUTS.items())


def _lines(name: str, num_shards: int, of_a_shard: int, partitions: int, batch_size: int) -> str:
    sizes = [of_a_shard] * num_shards
    largest = -(-sum(sizes) // partitions)  # a window over the whole partition
    windows = sorted({min(window, largest) for window in _WINDOWS})
    found = [shuffle_quality(sizes, batch_size=batch_size, partitions=partitions, window=window) for window in windows]
    return "".join(_line(name, one) for one in found)


def _line(name: str, one: ShuffleQuality) -> str:
    told = (
        name,
        f"{one.window:,}{' (default)' if one.window == 10_000 else ''}",
        f"{one.neighbour_distance:.3g}",
        f"{one.shard_distance:.3g}",
        f"{one.close_neighbours:.3g}",
        f"{one.shards_of_a_batch:.0f} ({one.shards_by_chance:.0f})",
        f"{one.open_shards:,}",
    )
    return f"| {' | '.join(told)} |\n"


if __name__ == "__main__":
    print(section())
