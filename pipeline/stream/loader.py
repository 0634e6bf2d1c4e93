"""The batches of one rank. The state is one integer, the stream position; resuming costs what starting costs.

Loader process k of n builds every n-th batch whole, and batches are taken from the processes in turn, so any number
of them gives the same stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.base.errors import DamageError, MismatchError
from pipeline.base.world import World
from pipeline.images.decode import ImageRejectedError, decode
from pipeline.stream.augment import augment
from pipeline.stream.dataset import DatasetReader, SampleDamagedError
from pipeline.stream.order import Order, batch_positions, check_world
from pipeline.stream.recipe import StreamRecipe


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch: images uint8 (B, 3, S, S), labels int64 (B,), places in the order."""

    step: int
    images: Tensor
    labels: Tensor
    positions: tuple[int, ...]
    replaced: tuple[str, ...] = field(default=())


class _Batches(IterableDataset[Batch]):
    """Global batches from *first_step* on, as one rank sees them. Endless."""

    def __init__(self, reader: DatasetReader, recipe: StreamRecipe, seed: int, world: World, first_step: int) -> None:
        self._reader, self._recipe, self._seed = reader, recipe, seed
        self._world, self._first_step = world, first_step

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            torch.set_num_threads(1)
        sizes = [shard.num_samples for shard in self._reader.shards]
        recipe = self._recipe
        order = Order(
            sizes, self._reader.card.digest, seed=self._seed, partitions=recipe.partitions, window=recipe.window
        )
        step = self._first_step + offset
        while True:
            yield self._build(order, step)
            step += stride

    def _build(self, order: Order, step: int) -> Batch:
        positions = batch_positions(step, self._recipe.batch_size, self._recipe.partitions, self._world)
        size = self._recipe.augment.size
        images = np.empty((len(positions), 3, size, size), dtype=np.uint8)
        labels = np.empty(len(positions), dtype=np.int64)
        replaced: list[str] = []
        for at, position in enumerate(positions):
            pixels, labels[at] = self._sample(order, position, replaced)
            images[at] = pixels.transpose(2, 0, 1)
        return Batch(step, torch.from_numpy(images), torch.from_numpy(labels), tuple(positions), tuple(replaced))

    def _sample(self, order: Order, position: int, replaced: list[str]) -> tuple[Any, int]:
        """The sample at *position*; when it is damaged, the next of its slot."""
        for _ in range(self._recipe.max_damaged + 1):
            place = order.place(position)
            try:
                sample = self._reader.read(place.shard, place.row)
            except SampleDamagedError as error:
                replaced.append(str(error))
                position += order.partitions
                continue
            try:
                pixels, _ = decode(sample.data)
            except ImageRejectedError as error:  # only where the digest is not checked
                replaced.append(f"{self._reader.shards[place.shard].name}: sample {sample.key}: {error.reason}")
                position += order.partitions
                continue
            if len(sample.labels) != 1:
                raise DamageError(f"sample {sample.key} has {len(sample.labels)} labels; this objective needs one")
            return augment(pixels, self._recipe.augment, self._seed, place.epoch, sample.key), sample.labels[0]
        raise DamageError(f"{replaced[-1]}", "mend the dataset, or allow for it with stream.max_damaged")


class StreamLoader:
    """An iterator over a rank's batches with a position that can be stored and given back."""

    def __init__(
        self, reader: DatasetReader, recipe: StreamRecipe, *, seed: int, world: World, position: int = 0
    ) -> None:
        check_world(world.size, recipe.partitions, recipe.batch_size)
        self._reader, self._recipe, self._seed, self._world = reader, recipe, seed, world
        self.position = position
        self._batches: Iterator[Batch] | None = None
        self._damaged: set[str] = set()  # a sample that is met again in the next epoch is still one

    def __iter__(self) -> StreamLoader:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._start()
        batch = next(self._batches)
        self._damaged.update(batch.replaced)
        if len(self._damaged) > self._recipe.max_damaged:
            raise DamageError(f"{len(self._damaged)} damaged samples: {batch.replaced[-1]}", "run vitpipe verify")
        self.position += self._recipe.batch_size
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position of."""
        return self._identity() | {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a stored position. Raises MismatchError for a position of another order, naming what differs."""
        ours = self._identity()
        differing = [f"{name}: {state.get(name)} -> {ours[name]}" for name in ours if state.get(name) != ours[name]]
        if differing:
            raise MismatchError(f"the stored stream position is of another order: {'; '.join(differing)}")
        self.position, self._batches = int(state["position"]), None

    def _identity(self) -> dict[str, Any]:
        recipe = self._recipe
        return {
            "dataset_digest": self._reader.card.digest,
            "seed": self._seed,
            "batch_size": recipe.batch_size,
            "partitions": recipe.partitions,
            "window": recipe.window,
        }

    def _start(self) -> Iterator[Batch]:
        first_step, rest = divmod(self.position, self._recipe.batch_size)
        if rest:
            raise MismatchError(f"stream position {self.position} is inside a global batch")
        batches = _Batches(self._reader, self._recipe, self._seed, self._world, first_step)
        if not self._recipe.workers:
            return iter(batches)
        # spawn: the parent runs gloo and boto3 threads, which must not be forked
        loader: DataLoader[Batch] = DataLoader(
            batches, batch_size=None, num_workers=self._recipe.workers, multiprocessing_context="spawn"
        )
        return iter(loader)
