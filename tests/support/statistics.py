"""Statistics of a made-up dataset, for cards that no images stand behind."""

from __future__ import annotations

from pipeline.records.dataset import DatasetStatistics


def plain_statistics(label_counts: tuple[int, ...], formats: dict[str, int], side: int) -> DatasetStatistics:
    """Of images that are all *side* x *side* pixels, with one label each, and not decoded."""
    num_samples = sum(formats.values())
    return DatasetStatistics(
        label_counts=label_counts,
        num_multi_label=0,
        formats=formats,
        width_min=side,
        width_max=side,
        width_mean=side,
        height_min=side,
        height_max=side,
        height_mean=side,
        short_sides={str(1 << (side.bit_length() - 1)): num_samples},
        aspects={"1": num_samples},
        channel_mean=None,
        channel_std=None,
    )
