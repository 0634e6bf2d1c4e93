"""Cost of a stage before it starts. Nothing is written; the rate is measured on objects spread over the listing."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.base.progress import Progress
from pipeline.base.store.protocol import ObjectChangedError, Store
from pipeline.corpus.staging.manifest import CopyEntry
from pipeline.corpus.staging.plan import CopySource, Listing, list_source
from pipeline.corpus.staging.recipe import StageRecipe

_SAMPLE_SECONDS = 5.0  # of measuring
_SAMPLE_OBJECTS = 256
_KEYS_PER_LIST = 1000  # of one request, by S3's limit


@dataclass(frozen=True)
class StageEstimate:
    """A stage before it begins. ``seconds`` counts reading at ``bytes_per_second``; a slow target adds to it."""

    num_objects: int
    num_bytes: int
    num_left_out: int
    num_rejected: int
    list_requests: int
    get_requests: int
    put_requests: int
    bytes_per_second: float
    seconds: float

    def as_result(self) -> dict[str, Any]:
        """The numbers, for ``--json``."""
        return asdict(self)


def estimate_stage(
    source: CopySource, recipe: StageRecipe, progress: Progress, bytes_per_second: float = 0.0
) -> StageEstimate:
    """List *source* and measure how fast it is read, unless *bytes_per_second* is given.

    Raises InputError when nothing is there to copy.
    """
    return estimate_listing(source, list_source(source, recipe, progress), recipe, bytes_per_second)


def estimate_listing(
    source: CopySource, listing: Listing, recipe: StageRecipe, bytes_per_second: float | None = 0.0
) -> StageEstimate:
    """The same of a *listing* of *source*. None *bytes_per_second*: the rate is not measured, and stays 0."""
    gets = puts = 0
    for entry in listing.entries():
        parts = max(1, -(-entry.num_bytes // recipe.part_bytes))
        gets += parts + (parts > 1)  # one more for the store's checksum
        puts += parts + 2 * (parts > 1)  # begin and complete
    rate = 0.0 if bytes_per_second is None else bytes_per_second or _measure_rate(source.store, listing, recipe)
    listed = listing.rows.num_rows + listing.num_left_out
    return StageEstimate(
        num_objects=listing.rows.num_rows,
        num_bytes=listing.num_bytes,
        num_left_out=listing.num_left_out,
        num_rejected=len(listing.rejects),
        list_requests=-(-listed // _KEYS_PER_LIST),
        get_requests=gets,
        put_requests=puts,
        bytes_per_second=rate,
        seconds=listing.num_bytes / rate if rate else 0.0,
    )


def _measure_rate(store: Store, listing: Listing, recipe: StageRecipe) -> float:
    """Bytes a second over a sample that is spread evenly over the listing."""
    every = max(1, listing.rows.num_rows // _SAMPLE_OBJECTS)
    sample = [entry for number, entry in enumerate(listing.entries()) if number % every == 0]
    deadline = time.monotonic() + _SAMPLE_SECONDS

    def read(entry: CopyEntry) -> int:
        if time.monotonic() > deadline:
            return 0
        try:
            return len(store.read_range(entry.key, 0, recipe.part_bytes, entry.etag))
        except (ObjectChangedError, FileNotFoundError):
            return 0

    started = time.monotonic()
    with ThreadPoolExecutor(recipe.parallel) as pool:
        moved = sum(pool.map(read, sample))
    return moved / max(time.monotonic() - started, 1e-6)
