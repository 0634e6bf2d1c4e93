"""StreamLoader: the batches of one rank. Its state is one integer, the position; resuming costs what starting costs.

Any number of loader processes gives the same stream, and so does any allowed number of ranks: global batch t holds the
same samples, with the same pixels. Plugs into any training loop::

    loader = StreamLoader(DatasetReader(workspace, "imagenet"), recipe, seed=0, world=World.from_environment())
    for batch in loader: ...
    for batch in DataLoader(loader, batch_size=None): ...     # the same: its processes are the loader's own
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.base.digests import differing_fields
from pipeline.base.errors import DamageError, InputError, MismatchError, RefusedError
from pipeline.base.retry import MESSAGE_SECONDS
from pipeline.base.world import World
from pipeline.stream.audit import AuditLog
from pipeline.stream.batch import BatchArrays, BatchBuilder, Replacement, SlotLayout, StreamPlan, mixture_of
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.loader_messages import WorkerSettings
from pipeline.stream.loader_pool import BuiltBatch, LoaderPool
from pipeline.stream.mixture import mixture_digest, whole_weights
from pipeline.stream.mixup import draw_coefficient, partners
from pipeline.stream.order import Ints, check_world, slots_of
from pipeline.stream.prefetch import Prefetcher
from pipeline.stream.recipe import LabelEncoder, LabelMode, StreamRecipe

_log = logging.getLogger(__name__)

_PREFETCHED_SHARDS = 64  # at most


@dataclass(frozen=True)
class Batch:
    """One rank's part of global batch *step*.

    images uint8 (B, 3, S, S); labels int64 (B,), or float32 (B, K) where a sample has many; positions in the global
    order; origins int64 (5, B): number of the dataset, its epoch, shard, row in the shard's index, damaged samples
    skipped. For mixup, the share of each sample's own (1: not mixed) and the index of its partner, int64 (B,).
    """

    step: int
    images: Tensor
    labels: Tensor
    positions: tuple[int, ...]
    origins: Ints
    replaced: tuple[Replacement, ...] = ()
    coefficient: float = 1.0
    partners: Tensor | None = None

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, as DataLoader asks for it."""
        mixed = None if self.partners is None else self.partners.pin_memory()
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory(), partners=mixed)


class StreamLoader(IterableDataset[Batch]):
    """An endless iterator over a rank's batches with a position that can be stored and restored.

    *readers* are one dataset, or those of a mixture with *weights*. *labels*: ``one`` class of each sample, int64 (B,);
    ``many``, float32 (B, K) with 1 for each class of the sample; ``none``, int64 -1. A sample whose labels do not fit
    is replaced like a damaged one. K is *num_classes*; 0: as many as the first dataset has.

    *on_message* gets what the user should know: a store that is waited for, a loader process that was replaced. *audit*
    logs what is handed out.
    """

    def __init__(  # noqa: PLR0913 - each of them is part of what a stream is
        self,
        readers: DatasetReader | Sequence[DatasetReader],
        recipe: StreamRecipe,
        *,
        seed: int,
        world: World,
        position: int = 0,
        weights: Sequence[float] | None = None,
        labels: LabelMode = "one",
        num_classes: int = 0,
        on_message: Callable[[str], None] = _log.warning,
        audit: AuditLog | None = None,
    ) -> None:
        check_world(world.size, recipe.partitions, recipe.batch_size)
        self._readers = (readers,) if isinstance(readers, DatasetReader) else tuple(readers)
        self._weights = tuple(weights or [1.0] * len(self._readers))
        labelling = LabelEncoder(labels, num_classes or len(self._readers[0].card.class_names))
        if labels != "none" and not labelling.num_classes:
            raise InputError(f"dataset {self._readers[0].card.name} has no classes", "name an objective without labels")
        self._plan = StreamPlan(recipe, seed, world, self._weights, labelling)
        self._on_message, self._audit = on_message, audit
        self.position = position
        self._source: _InlineSource | _PoolSource | None = None
        self._damaged: set[tuple[str, str, str]] = set()  # a sample that is met again in the next epoch is still one

    def __iter__(self) -> Self:
        if get_worker_info() is not None:
            raise RefusedError("DataLoader: num_workers must be 0", "loader processes are its own: set stream.workers")
        return self

    def __next__(self) -> Batch:
        step, rest = divmod(self.position, self._plan.recipe.batch_size)
        if rest:
            raise MismatchError(f"stream position {self.position} is inside a global batch")
        if self._source is None:
            self._source = self._start(step)
        try:
            built = self._source.take(step)
            self._count(built.replaced)
        except BaseException:
            self.close()  # what was prepared is not to be trusted to be in step any more
            raise
        batch = self._batch(step, built)
        if self._audit:
            self._audit.add(step, self._plan.positions(step), batch.origins)
        self.position += self._plan.recipe.batch_size
        return batch

    def close(self) -> None:
        """End loader processes and read-ahead, and close the shards that are open. Going on starts them again."""
        if self._source:
            self._source.close()
            self._source = None

    @property
    def worker_pids(self) -> list[int]:
        """The loader processes that are there now."""
        return self._source.pids if self._source else []

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position of."""
        return self._identity() | {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a stored position. Raises MismatchError for a position of another stream, naming what differs."""
        own = self._identity()
        differing = differing_fields(own, {name: value for name, value in state.items() if name != "position"})
        if differing or "position" not in state:
            raise MismatchError(f"the stored stream position is of another stream: {'; '.join(differing)}")
        self.close()
        self.position = int(state["position"])

    def _identity(self) -> dict[str, Any]:
        recipe = self._plan.recipe
        return {
            "dataset_digest": mixture_digest([reader.card.digest for reader in self._readers], self._weights),
            "weights": whole_weights(self._weights),
            "seed": self._plan.seed,
            "batch_size": recipe.batch_size,
            "partitions": recipe.partitions,
            "window": recipe.window,
            "augment": recipe.augment.model_dump(mode="json"),
            "mixup": recipe.mixup,
        }

    def _start(self, step: int) -> _InlineSource | _PoolSource:
        if self._plan.recipe.workers:
            return _PoolSource(self._readers, self._plan, step, self._on_message)
        return _InlineSource(self._readers, self._plan, step, self._on_message)

    def _count(self, replaced: list[Replacement]) -> None:
        for replacement in replaced:
            if replacement.sample in self._damaged:
                continue
            self._damaged.add(replacement.sample)
            if len(self._damaged) > self._plan.recipe.max_damaged:
                raise DamageError(f"{len(self._damaged)} damaged samples: {replacement}", "run vitpipe verify")
            self._on_message(f"position {replacement.position}: {replacement}; the next of its slot takes its place")

    def _batch(self, step: int, built: BuiltBatch) -> Batch:
        plan, arrays = self._plan, built.arrays
        mixed = None
        if plan.recipe.mixup:
            slots = len(slots_of(plan.recipe.partitions, plan.world))
            mixed = torch.from_numpy(partners(plan.num_samples // slots, slots))
        many = plan.labelling.mode == "many"
        return Batch(
            step=step,
            images=torch.from_numpy(arrays.images),
            labels=torch.from_numpy(plan.labelling.multi_hot(arrays.bits) if many else arrays.labels),
            positions=tuple(plan.positions(step).tolist()),
            origins=arrays.origins,
            replaced=tuple(built.replaced),
            coefficient=draw_coefficient(plan.recipe.mixup, plan.seed, step),
            partners=mixed,
        )


class _NodePrefetcher:
    """Prefetches for a rank the shards of its next windows, as many as half its share of the node's cache holds."""

    def __init__(self, readers: tuple[DatasetReader, ...], plan: StreamPlan, step: int) -> None:
        self._batch_size = plan.recipe.batch_size
        share = plan.recipe.cache_bytes // (2 * plan.world.local_size)
        slots = slots_of(plan.recipe.partitions, plan.world)
        self._prefetcher = Prefetcher(
            readers,
            mixture_of(readers, plan),
            slots,
            step * self._batch_size,
            shards=_PREFETCHED_SHARDS,
            share_bytes=share,
        )

    def take(self, step: int) -> None:
        self._prefetcher.advance(step * self._batch_size)

    def close(self) -> None:
        self._prefetcher.close()


class _InlineSource:
    """Batches built in this process, on demand."""

    def __init__(
        self, readers: tuple[DatasetReader, ...], plan: StreamPlan, step: int, on_message: Callable[[str], None]
    ) -> None:
        for reader in readers:
            reader.retry.on_message = on_message
        self._readers, self._plan, self._builder = readers, plan, BatchBuilder(readers, plan)
        self._prefetcher = _NodePrefetcher(readers, plan, step)

    @property
    def pids(self) -> list[int]:
        return []

    def take(self, step: int) -> BuiltBatch:
        self._prefetcher.take(step)
        plan = self._plan
        arrays = BatchArrays.empty(plan.num_samples, plan.recipe.augment.size, plan.labelling.num_bytes)
        return BuiltBatch(arrays, self._builder.build(step, arrays))

    def close(self) -> None:
        self._prefetcher.close()
        for reader in self._readers:
            reader.close()


class _PoolSource:
    """Batches built by loader processes."""

    def __init__(
        self, readers: tuple[DatasetReader, ...], plan: StreamPlan, step: int, on_message: Callable[[str], None]
    ) -> None:
        recipe = plan.recipe
        layout = SlotLayout(recipe.ahead, plan.num_samples, recipe.augment.size, plan.labelling.num_bytes)
        # a process that waits for a store shows life every MESSAGE_SECONDS
        stuck_seconds = max(recipe.stall_seconds, 2 * MESSAGE_SECONDS)
        settings = WorkerSettings(readers, plan, layout, stuck_seconds)
        self._pool = LoaderPool(settings, first_step=step, num_workers=recipe.workers, on_message=on_message)
        self._prefetcher = _NodePrefetcher(readers, plan, step)

    @property
    def pids(self) -> list[int]:
        return self._pool.pids

    def take(self, step: int) -> BuiltBatch:
        self._prefetcher.take(step)
        return self._pool.take(step)

    def close(self) -> None:
        self._pool.close()
        self._prefetcher.close()
