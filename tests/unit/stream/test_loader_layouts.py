"""Thousands of layouts: batches are equal at every world and with any workers; going on equals not having stopped.

In one process: datasets in memory, loader processes simulated by having the batches that the desk gave out built in
any order, with some of them lost and built again.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.base.errors import DamageError
from pipeline.base.seeds import derive
from pipeline.base.world import World, allowed_world_sizes
from pipeline.stream.batch import BatchArrays, BatchBuilder, StreamPlan
from pipeline.stream.dataset import DatasetReader, Sample, SampleDamagedError
from pipeline.stream.loader_pool import BatchQueue
from pipeline.stream.recipe import AugmentRecipe, StreamRecipe
from tests.support.pictures import noise, png

SIZE = 2
PICTURES = [png(noise(SIZE, SIZE, at)) for at in range(16)]


class MemoryReader:
    """A dataset in memory: of shards of *sizes*, some samples *damaged*. Its labels number the samples."""

    def __init__(self, name: str, sizes: list[int], damaged: set[tuple[int, int]]) -> None:
        self.card = SimpleNamespace(name=name, digest=name)
        self.sizes = np.asarray(sizes)
        self.damaged = damaged

    @property
    def shards(self) -> Any:
        """As far as the builder looks at them."""

        class Shards(list[Any]):
            sizes = self.sizes

        return Shards(SimpleNamespace(name=f"shard-{number}") for number in range(len(self.sizes)))

    def read_many(self, locations: Iterable[tuple[int, int]]) -> Iterator[Sample | SampleDamagedError]:
        """See DatasetReader."""
        for shard, row in locations:
            assert 0 <= row < self.sizes[shard]
            if (shard, row) in self.damaged:
                yield SampleDamagedError(f"shard-{shard}", f"{shard}-{row}", row, "it is damaged")
            else:
                number = derive(0, self.card.name, shard, row)
                yield Sample(f"{shard}-{row}", PICTURES[number % len(PICTURES)], (number,))


Content = tuple[bytes, bytes, bytes, str]


def built(builder: BatchBuilder, plan: StreamPlan, step: int) -> dict[int, Content]:
    """Every sample of a rank's batch, by position."""
    into = BatchArrays.empty(plan.num_samples, SIZE)
    replaced: dict[int, list[str]] = {}
    for one in builder.build(step, into):
        replaced.setdefault(one.position, []).append(str(one))
    return {
        position: (
            into.images[at].tobytes(),
            into.labels[at].tobytes(),
            into.origins[:, at].tobytes(),
            "; ".join(replaced.get(position, [])),
        )
        for at, position in enumerate(plan.positions(step).tolist())
    }


class Layout:
    """A stream of some datasets, drawn at random."""

    def __init__(self, draw: random.Random) -> None:
        partitions = draw.choice([1, 2, 3, 4, 6, 8, 12, 16])
        recipe = StreamRecipe(
            batch_size=partitions * draw.randint(1, 3),
            partitions=partitions,
            window=draw.choice([1, 2, 5, 100]),
            augment=AugmentRecipe(size=SIZE),
            max_damaged=12,
        )
        self.readers = []
        for number in range(draw.choice([1, 1, 2, 3])):
            sizes = [draw.randint(1, 9) for _ in range(draw.randint(1, 5))]
            rows = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
            damaged = set(draw.sample(rows, draw.choice([0, 0, len(rows) // 4])))
            self.readers.append(cast(DatasetReader, MemoryReader(f"d{number}", sizes, damaged)))
        self.weights = tuple(float(draw.randint(1, 4)) for _ in self.readers)
        self.recipe, self.seed = recipe, draw.randint(0, 9)

    def stream(self, world: World, first: int, num_steps: int) -> dict[int, Content]:
        """What one rank sees, built in turn."""
        plan = StreamPlan(self.recipe, self.seed, world, self.weights)
        builder = BatchBuilder(self.readers, plan)
        seen: dict[int, Content] = {}
        for step in range(first, first + num_steps):
            seen |= built(builder, plan, step)
        return seen

    def stream_of_workers(self, draw: random.Random, world: World, first: int, num_steps: int) -> dict[int, Content]:
        """The same by loader processes that take turns as it comes, and of which some are lost at their work."""
        plan = StreamPlan(self.recipe, self.seed, world, self.weights)
        workers = draw.randint(1, 8)
        builders = [BatchBuilder(self.readers, plan) for _ in range(workers)]
        desk, done, seen, step = BatchQueue(first, workers, draw.randint(1, 3)), {}, {}, first
        while step < first + num_steps:
            desk.assign()
            worker = draw.choice([worker for worker in range(workers) if desk.work_of(worker)])
            number = desk.work_of(worker)[0][0]
            ahead = number >= first + num_steps  # of what is asked for here; it might not be possible
            content = {} if ahead else built(builders[worker], plan, number)
            if draw.random() < 0.2:
                builders[worker] = BatchBuilder(self.readers, plan)  # a fresh process, with the same work
                continue
            done[number] = content
            desk.built(worker, number)
            while desk.has(step) and step < first + num_steps:
                seen |= done[step]
                desk.take(step)
                step += 1
        return seen


HURRIED = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@HURRIED
@given(st.integers(0, 2**32))
def test_the_stream_is_the_same_however_it_is_made(number: int) -> None:
    check_layout(number)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(HURRIED, max_examples=5000)
@given(st.integers(0, 2**32))
def test_the_stream_is_the_same_over_thousands_of_layouts(number: int) -> None:
    check_layout(number)


def check_layout(number: int) -> None:
    """At one world size, with any workers and with a stop, against all of it at once."""
    draw = random.Random(number)
    layout = Layout(draw)
    num_steps = draw.randint(1, 8)
    try:
        whole = layout.stream(World(), 0, num_steps)
    except DamageError:  # a slot of which all is damaged, of a dataset that is hardly larger than its partitions
        return
    assert sorted(whole) == list(range(num_steps * layout.recipe.batch_size))
    for size in draw.sample(allowed_world_sizes(layout.recipe.partitions), k=1):
        ranks = [layout.stream(World(rank, size), 0, num_steps) for rank in range(size)]
        assert len({len(rank) for rank in ranks}) == 1
        assert {at: content for rank in ranks for at, content in rank.items()} == whole
        rank = draw.randrange(size)
        assert layout.stream_of_workers(draw, World(rank, size), 0, num_steps) == ranks[rank]
        stop = draw.randint(0, num_steps)
        resumed = layout.stream(World(), 0, stop)
        for rank in range(size):
            resumed |= layout.stream_of_workers(draw, World(rank, size), stop, num_steps - stop)
        assert resumed == whole
