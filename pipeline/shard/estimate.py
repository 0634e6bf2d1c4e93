"""What sharding a corpus will cost, before it starts: bytes, requests and time."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from pipeline.base.store.protocol import Store
from pipeline.base.units import format_bytes, format_seconds
from pipeline.records.corpus import Corpus
from pipeline.shard.plan import num_shards, total_bytes
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.writer import checked_entries

_PROBED = 64  # images that are read and checked for the time of an image
# writing requests of a shard: get plan and note, head card, delete the old note; put tar, index and note; head tar
_SHARD_REQUESTS = 8
_MULTIPART_BYTES, _PART_BYTES = 64 << 20, 16 << 20  # how the S3 store uploads (base/store/s3.py)


@dataclass(frozen=True)
class Estimate:
    """``seconds`` is None where nothing was probed; the requests are 0 where source or target is a folder."""

    num_images: int
    num_bytes: int
    num_shards: int
    num_read_requests: int
    num_write_requests: int
    seconds: float | None

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.num_images:,} images", f"{format_bytes(self.num_bytes)}", f"{self.num_shards:,} shards"]
        if self.num_read_requests or self.num_write_requests:
            parts.append(f"about {self.num_read_requests:,} reading and {self.num_write_requests:,} writing requests")
        if self.seconds is not None:
            parts.append(f"about {format_seconds(self.seconds)}")
        return ", ".join(parts)


def estimate(
    corpus: Corpus, recipe: ShardRecipe, source_is_remote: bool, target: Store, num_cpus: float, *, probe: bool
) -> Estimate:
    """Estimate for *corpus* as listed. With *probe*, some of its images are read and checked here, for the time.

    Counts the bytes read; with ``resize`` the bytes written will be fewer.
    """
    num_bytes = total_bytes(corpus.entries)
    count = num_shards(corpus.entries.num_rows, num_bytes, recipe) if corpus.entries.num_rows else 0
    parts = 2 + -(-recipe.max_bytes // _PART_BYTES) if recipe.max_bytes > _MULTIPART_BYTES else 0
    remote = target.local_path("x") is None
    return Estimate(
        num_images=corpus.entries.num_rows,
        num_bytes=num_bytes,
        num_shards=count,
        num_read_requests=corpus.entries.num_rows if source_is_remote else 0,
        num_write_requests=count * (_SHARD_REQUESTS + parts) if remote else 0,
        seconds=_seconds_per_image(corpus, recipe) * corpus.entries.num_rows / num_cpus if probe else None,
    )


def _seconds_per_image(corpus: Corpus, recipe: ShardRecipe) -> float:
    """Reading and checking an image on this machine; the first is left out, since it starts the sandbox."""
    table = next(iter(corpus.entries.chunks()), None)
    if table is None:
        return 0.0
    checked = checked_entries(table.slice(0, _PROBED + 1), corpus.reader, recipe, {})
    next(checked, None)
    started = time.perf_counter()
    count = sum(1 for _ in islice(checked, _PROBED))
    return (time.perf_counter() - started) / max(1, count)
