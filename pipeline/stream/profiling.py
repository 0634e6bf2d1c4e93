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
_GROUP_SIZE = 32  # samples that are between two stages
_FETCHERS = 2  # as many threads as Prefetcher has
_MAX_WINDOWS = 10_000  # ahead, that are examined for shards to fetch
_MAX_REPEATED = 2_048  # samples that are built again and again when only some shards were fetched
SampleId = tuple[int, int, int]  # epoch, shard, row


@dataclass
class StageTime:
    """The work of one stage. ``num_bytes``: of samples as stored, or of shards for ``fetch``."""

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
        fetched = []
        for shard in shards:  # one generator for all threads, which `next` on a list iterator allows
            descriptor = reader.bring(shard, cache)
            if descriptor is not None:
                os.close(descriptor)
                fetched.append(shard)
            if time.perf_counter() - started > seconds:
                break
        return fetched

    with ThreadPoolExecutor(_FETCHERS) as pool:
        fetched = [shard for part in [pool.submit(fetch) for _ in range(_FETCHERS)] for shard in part.result()]
    taken = StageTime("fetch", seconds=time.perf_counter() - started)
    taken.samples = int(reader.shards.sizes[fetched].sum())
    taken.num_bytes = sum(reader.shards[shard].num_bytes for shard in fetched)
    return taken, frozenset(fetched)


def _first_shards(mixture: Mixture, plan: StreamPlan) -> Iterator[int]:
    slots = slots_of(plan.recipe.partitions, plan.world)
    needs = islice(mixture.shards_ahead(0, slots), _MAX_WINDOWS)
    return iter(list(dict.fromkeys(shard for _, shard in needs)))


def time_building(
    reader: DatasetReader, plan: StreamPlan, seconds: float, shards: frozenset[int] | None = None
) -> list[StageTime]:
    """Build batches of *plan* for about *seconds*; of *shards* only, unless None.

    Raises DamageError at a sample that is damaged.
    """
    timer = StageTimer()
    arrays = BatchArrays.empty(_GROUP_SIZE, plan.recipe.augment.size)
    sample_ids = _sample_ids(mixture_of([reader], plan), plan, timer)
    if shards is not None:
        sample_ids = cycle(_limited_to(shards, sample_ids, plan))
    groups = iter(lambda: list(islice(sample_ids, _GROUP_SIZE)), [])
    _build(reader, plan, StageTimer(), next(groups), arrays)  # opens the first shard, and warms the libraries up
    started = time.perf_counter()
    for group in groups:
        _build(reader, plan, timer, group, arrays)
        if time.perf_counter() - started > seconds:
            break
    return [timer.times[stage] for stage in STAGES if stage in timer.times]


def _sample_ids(mixture: Mixture, plan: StreamPlan, timer: StageTimer) -> Iterator[SampleId]:
    """Samples in stream order, endlessly."""
    for step in count():
        positions = plan.positions(step)
        refs = timer.measure("order", len(positions), partial(mixture.locate, positions)).refs
        yield from zip(refs.epochs.tolist(), refs.shards.tolist(), refs.rows.tolist(), strict=True)


def _limited_to(shards: frozenset[int], sample_ids: Iterator[SampleId], plan: StreamPlan) -> list[SampleId]:
    """The first of *sample_ids* that are of *shards*. A shard that is needed first is in the first windows."""
    slots = len(slots_of(plan.recipe.partitions, plan.world))
    first_windows = islice(sample_ids, 2 * slots * plan.recipe.window + plan.num_samples)
    return list(islice((sample_id for sample_id in first_windows if sample_id[1] in shards), _MAX_REPEATED))


def _build(
    reader: DatasetReader, plan: StreamPlan, timer: StageTimer, group: list[SampleId], into: BatchArrays
) -> None:
    num, recipe = len(group), plan.recipe.augment
    samples = timer.measure("read", num, lambda: _read(reader, group))
    timer.add("read", 0, 0.0, sum(len(sample.data) for sample in samples))
    decoded = timer.measure("decode", num, lambda: list(map(partial(_decode, reader), group, samples)))

    def augmented() -> list[Pixels]:
        return [
            augment(pixels, recipe, plan.seed, epoch, sample.key)
            for pixels, (epoch, _, _), sample in zip(decoded, group, samples, strict=True)
        ]

    views = timer.measure("augment", num, augmented)

    def collate() -> None:
        for at, (view, sample) in enumerate(zip(views, samples, strict=True)):
            np.copyto(into.images[at], view.transpose(2, 0, 1))
            into.labels[at] = sample.labels[0] if sample.labels else -1

    timer.measure("collate", num, collate)


def _read(reader: DatasetReader, group: list[SampleId]) -> list[Sample]:
    samples = []
    for sample in reader.read_many([(shard, row) for _, shard, row in group]):
        if isinstance(sample, DamageError):
            raise sample
        samples.append(sample)
    return samples


def _decode(reader: DatasetReader, sample_id: SampleId, sample: Sample) -> Pixels:
    try:
        return decode(sample.data)[0]
    except ImageRejectedError as error:
        raise reader.damaged(sample_id[1], sample_id[2], error.reason) from None
