"""How long each stage of the stream takes, on the samples of a dataset in stream order. No torch.

The stages of building are measured one after the other on the same few samples at a time, in this process; fetching
on whole shards, into a cache that is empty at the start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count, cycle, islice
from typing import TypeVar

import numpy as np

from pipeline.base.errors import DamageError
from pipeline.base.retry import RetryPolicy
from pipeline.images.decode import ImageRejectedError, decode
from pipeline.images.transforms import Pixels
from pipeline.stream.augment import augment
from pipeline.stream.batch import BatchArrays, StreamPlan, mixture_of
from pipeline.stream.dataset import DatasetReader, Sample
from pipeline.stream.mixture import Mixture
from pipeline.stream.order import slots_of

Result = TypeVar("Result")

STAGES = ("fetch", "order", "read", "decode", "augment", "collate")
_AT_ONCE = 32  # samples that are between two stages
_FETCHERS = 2  # as many as ReadAhead has
_LOOK = 10_000  # windows ahead that are looked at for shards to fetch
_KEPT = 2_048  # samples that are built again and again when only some shards were fetched
Spot = tuple[int, int, int]  # epoch, shard, row


@dataclass
class StageTime:
    """What one stage did. ``num_bytes``: of samples as stored, or of shards for ``fetch``."""

    stage: str
    samples: float = 0
    seconds: float = 0.0
    num_bytes: int = 0

    def add(self, samples: float, seconds: float, num_bytes: int = 0) -> None:
        """It took *seconds* more, for *samples* more."""
        self.samples += samples
        self.seconds += seconds
        self.num_bytes += num_bytes

    @property
    def rate(self) -> float:
        """Samples per second; 0 when nothing was measured."""
        return self.samples / self.seconds if self.seconds else 0.0


@dataclass
class StageTimer:
    """Times of all stages that were measured, by their names."""

    times: dict[str, StageTime] = field(default_factory=dict)

    def measure(self, stage: str, samples: int, work: Callable[[], Result]) -> Result:
        """Do *work* and add what it took."""
        started = time.perf_counter()
        result = work()
        self.add(stage, samples, time.perf_counter() - started)
        return result

    def add(self, stage: str, samples: float, seconds: float, num_bytes: int = 0) -> None:
        """*stage* took *seconds* for *samples*."""
        self.times.setdefault(stage, StageTime(stage)).add(samples, seconds, num_bytes)


def time_fetching(reader: DatasetReader, plan: StreamPlan, seconds: float) -> tuple[StageTime, frozenset[int]]:
    """Fetch the shards that *plan* needs first for about *seconds*, at least one: the time, and which they are.

    *reader*'s cache should be empty, and large enough. Raises what ``DatasetReader.bring`` does.
    """
    mixture, cache = mixture_of([reader], plan), reader.cache_with(RetryPolicy())
    shards = _first_shards(mixture, plan)
    started = time.perf_counter()

    def fetch() -> list[int]:
        brought = []
        for shard in shards:  # one generator for all threads, which `next` on a list iterator allows
            descriptor = reader.bring(shard, cache)
            if descriptor is not None:
                os.close(descriptor)
                brought.append(shard)
            if time.perf_counter() - started > seconds:
                break
        return brought

    with ThreadPoolExecutor(_FETCHERS) as pool:
        brought = [shard for part in [pool.submit(fetch) for _ in range(_FETCHERS)] for shard in part.result()]
    taken = StageTime("fetch", seconds=time.perf_counter() - started)
    taken.samples = int(reader.shards.sizes[brought].sum())
    taken.num_bytes = sum(reader.shards[shard].num_bytes for shard in brought)
    return taken, frozenset(brought)


def _first_shards(mixture: Mixture, plan: StreamPlan) -> Iterator[int]:
    slots = slots_of(plan.recipe.partitions, plan.world)
    needs = islice(mixture.shards_ahead(0, slots), _LOOK)
    return iter(list(dict.fromkeys(shard for _, shard in needs)))


def time_building(
    reader: DatasetReader, plan: StreamPlan, seconds: float, shards: frozenset[int] | None = None
) -> list[StageTime]:
    """Build batches of *plan* for about *seconds*; of *shards* only, when they are given.

    Raises DamageError at a sample that is damaged.
    """
    watch = StageTimer()
    arrays = BatchArrays.empty(_AT_ONCE, plan.recipe.augment.size)
    spots = _spots(mixture_of([reader], plan), plan, watch)
    if shards is not None:
        spots = cycle(_those_of(shards, spots, plan))
    groups = iter(lambda: list(islice(spots, _AT_ONCE)), [])
    _build(reader, plan, StageTimer(), next(groups), arrays)  # opens the first shard, and warms the libraries up
    started = time.perf_counter()
    for group in groups:
        _build(reader, plan, watch, group, arrays)
        if time.perf_counter() - started > seconds:
            break
    return [watch.times[stage] for stage in STAGES if stage in watch.times]


def _spots(mixture: Mixture, plan: StreamPlan, watch: StageTimer) -> Iterator[Spot]:
    """Places in stream order, endlessly."""
    for step in count():
        positions = plan.positions(step)
        places = watch.measure("order", len(positions), partial(mixture.locate, positions)).places
        yield from zip(places.epochs.tolist(), places.shards.tolist(), places.rows.tolist(), strict=True)


def _those_of(shards: frozenset[int], spots: Iterator[Spot], plan: StreamPlan) -> list[Spot]:
    """The first of *spots* that are of *shards*. A shard that is needed first stands in the first windows."""
    slots = len(slots_of(plan.recipe.partitions, plan.world))
    first_windows = islice(spots, 2 * slots * plan.recipe.window + plan.num_samples)
    return list(islice((spot for spot in first_windows if spot[1] in shards), _KEPT))


def _build(reader: DatasetReader, plan: StreamPlan, watch: StageTimer, group: list[Spot], into: BatchArrays) -> None:
    num, recipe = len(group), plan.recipe.augment
    samples = watch.measure("read", num, lambda: _read(reader, group))
    watch.add("read", 0, 0.0, sum(len(sample.data) for sample in samples))
    decoded = watch.measure("decode", num, lambda: list(map(partial(_decode, reader), group, samples)))

    def augmented() -> list[Pixels]:
        return [
            augment(pixels, recipe, plan.seed, epoch, sample.key)
            for pixels, (epoch, _, _), sample in zip(decoded, group, samples, strict=True)
        ]

    views = watch.measure("augment", num, augmented)

    def collate() -> None:
        for at, (view, sample) in enumerate(zip(views, samples, strict=True)):
            np.copyto(into.images[at], view.transpose(2, 0, 1))
            into.labels[at] = sample.labels[0] if sample.labels else -1

    watch.measure("collate", num, collate)


def _read(reader: DatasetReader, group: list[Spot]) -> list[Sample]:
    samples = []
    for found in reader.read_many([(shard, row) for _, shard, row in group]):
        if isinstance(found, DamageError):
            raise found
        samples.append(found)
    return samples


def _decode(reader: DatasetReader, spot: Spot, sample: Sample) -> Pixels:
    try:
        return decode(sample.data)[0]
    except ImageRejectedError as error:
        raise reader.damaged(spot[1], spot[2], error.reason) from None
