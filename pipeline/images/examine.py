"""The whole check of one image, in this process. The sandbox does the same in another one."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.images.check import Checked, CheckOptions
from pipeline.images.decode import decode
from pipeline.images.reencode import reencode
from pipeline.images.statistics import channel_sums, pixels_digest, sampled_rows


def examine(data: bytes, options: CheckOptions, on_size: Callable[[int], None] | None = None) -> Checked:
    """Decode *data* fully and do what *options* ask. *on_size* as in ``decode``. Raises ImageRejectedError."""
    pixels, facts = decode(data, on_size)
    counted = sampled_rows(pixels)
    num_pixels = counted.shape[0] * counted.shape[1]
    sums, squares = channel_sums(counted) if options.statistics else (None, None)
    digest = pixels_digest(pixels) if options.pixels_sha256 else ""
    encoded = None
    if options.reencode.mode != "keep":
        encoded, facts = reencode(pixels, options.reencode)
    return Checked(facts, num_pixels, sums, squares, digest, encoded)
