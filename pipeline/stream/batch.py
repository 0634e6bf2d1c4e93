"""One rank's part of a global batch: order, read, decode, augment, into arrays in any memory. No torch.

A damaged sample at own position p of its dataset is replaced by that at p + P there, the next of its slot, and
so on; that is fixed by the order, so every rank, process and attempt replaces it by the same. A sample whose labels the
objective cannot use is treated alike.
"""

from __future__ import annotations

import mmap
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DamageError
from pipeline.base.retry import RetryPolicy
from pipeline.base.store.protocol import Store
from pipeline.base.world import World
from pipeline.images.decode import ImageRejectedError, decode
from pipeline.images.transforms import Pixels
from pipeline.records.dataset import read_dataset_card
from pipeline.stream.augment import augment
from pipeline.stream.dataset import DatasetReader, Sample, SampleDamagedError
from pipeline.stream.mixture import Mixture
from pipeline.stream.order import Ints, Order, batch_positions
from pipeline.stream.recipe import LabelEncoder, StreamRecipe

SampleRead = Sample | SampleDamagedError

DATASET, EPOCH, SHARD, ROW, SKIPPED = range(5)  # rows of ``origins``
NUM_ORIGINS = 5
PAGE_BYTES = 4096  # of memory, and of the StatusPage before the slots
_CACHED_NAMES = 4096  # of shards
_OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@dataclass(frozen=True)
class StreamPlan:
    """Everything but the datasets that fixes the batches of one rank."""

    recipe: StreamRecipe
    seed: int
    world: World
    weights: tuple[float, ...] = ()
    labelling: LabelEncoder = field(default_factory=LabelEncoder)

    def positions(self, step: int) -> Ints:
        """Of this rank in global batch *step*: int64 (B,)."""
        return batch_positions(step, self.recipe.batch_size, self.recipe.partitions, self.world)

    @property
    def num_samples(self) -> int:
        """B: samples of this rank in each global batch."""
        return self.recipe.batch_size // self.world.size


@dataclass(frozen=True)
class BatchArrays:
    """images uint8 (B, 3, S, S), labels int64 (B,), origins int64 (5, B), and bits uint8 (B, L): its classes.

    In memory the channels of a pixel lie together, as the decoder gives them: torch's channels_last.
    Rows of ``origins``: number of the dataset, epoch of that dataset, number of the shard, row in its index, and how
    many damaged samples were skipped before it. L is 0 unless a sample may have many labels, see LabelEncoder.
    """

    images: NDArray[np.uint8]
    labels: Ints
    origins: Ints
    bits: NDArray[np.uint8]

    @classmethod
    def empty(cls, num_samples: int, size: int, label_bytes: int = 0) -> Self:
        """New arrays."""
        memory = np.empty(cls.num_bytes(num_samples, size, label_bytes), np.uint8)
        return cls.over(memory, num_samples, size, label_bytes)

    @classmethod
    def over(cls, memory: NDArray[np.uint8], num_samples: int, size: int, label_bytes: int = 0) -> Self:
        """Arrays in *memory* uint8 (num_bytes,), whose start is aligned to eight bytes."""
        head = memory[: 8 * num_samples * (1 + NUM_ORIGINS)].view(np.int64).reshape(1 + NUM_ORIGINS, num_samples)
        middle = head.nbytes + num_samples * 3 * size * size
        rows = memory[head.nbytes : middle].reshape(num_samples, size, size, 3)
        bits = memory[middle : middle + num_samples * label_bytes].reshape(num_samples, label_bytes)
        return cls(rows.transpose(0, 3, 1, 2), head[0], head[1:], bits)

    @staticmethod
    def num_bytes(num_samples: int, size: int, label_bytes: int = 0) -> int:
        """Of all arrays together."""
        return num_samples * (8 * (1 + NUM_ORIGINS) + 3 * size * size + label_bytes)


@dataclass(frozen=True)
class Replacement:
    """A sample that could not be handed out at *position* of the global order. ``str`` describes it in one line."""

    position: int
    dataset: str
    shard: str
    key: str
    offset: int
    reason: str

    def __str__(self) -> str:
        sample = f"sample {self.key} at byte {self.offset}" if self.offset >= 0 else self.key
        return f"{self.dataset}/{self.shard}: {sample}: {self.reason}"

    @property
    def sample(self) -> tuple[str, str, str]:
        """The same for every time that it is met."""
        return self.dataset, self.shard, self.key


def open_readers(workspace: Store, names: Iterable[str], recipe: StreamRecipe, world: World) -> list[DatasetReader]:
    """The datasets *names*, opened as *recipe* says and with room for the shards that one rank reads in turn."""
    readers = []
    for name in names:
        card = read_dataset_card(workspace, name)
        window = min(recipe.window, card.num_samples // recipe.partitions + 1)
        shards = 2 + window * card.num_shards // max(1, card.num_samples)  # of a window, with those cut by its ends
        slots = recipe.partitions // world.size
        readers.append(
            DatasetReader(
                workspace,
                name,
                check=recipe.check,
                access=recipe.access,
                cache_bytes=recipe.cache_bytes,
                retry=RetryPolicy(recipe.patience_seconds),
                open_shards=min(max(64, slots * shards), _OPEN_FILES // 2),
            )
        )
    return readers


def mixture_of(readers: Sequence[DatasetReader], plan: StreamPlan) -> Mixture:
    """The order over all *readers*."""
    recipe = plan.recipe
    orders = [
        Order(
            reader.shards.sizes.tolist(),
            reader.card.digest,
            seed=plan.seed,
            partitions=recipe.partitions,
            window=recipe.window,
        )
        for reader in readers
    ]
    return Mixture(orders, plan.weights)


class BatchBuilder:
    """Builds batches of *plan*, in any order. *on_activity* gets what is read, in case this process dies of it."""

    def __init__(
        self, readers: Sequence[DatasetReader], plan: StreamPlan, on_activity: Callable[[str], None] = lambda _: None
    ) -> None:
        self._readers, self._plan, self._on_activity = tuple(readers), plan, on_activity
        self.mixture = mixture_of(readers, plan)
        self._name = lru_cache(maxsize=_CACHED_NAMES)(lambda dataset, shard: self._readers[dataset].shards[shard].name)

    def build(self, step: int, into: BatchArrays) -> list[Replacement]:
        """Fill *into* with batch *step*; the samples that had to be replaced. Raises DamageError for too many."""
        positions = self._plan.positions(step)
        located = self.mixture.locate(positions)
        cursors = [
            _Cursor(*values)
            for values in zip(
                located.datasets.tolist(),
                located.positions.tolist(),
                located.refs.epochs.tolist(),
                located.refs.shards.tolist(),
                located.refs.rows.tolist(),
                strict=True,
            )
        ]
        reads = [
            reader.read_many([(cursor.shard, cursor.row) for cursor in cursors if cursor.dataset == number])
            for number, reader in enumerate(self._readers)
        ]
        replaced: list[Replacement] = []
        for at, (position, cursor) in enumerate(zip(positions.tolist(), cursors, strict=True)):
            sample, pixels = self._sample(position, cursor, reads[cursor.dataset], replaced)
            out = augment(pixels, self._plan.recipe.augment, self._plan.seed, cursor.epoch, sample.key)
            np.copyto(into.images[at], out.transpose(2, 0, 1))
            self._plan.labelling.put(sample.labels, into.labels, into.bits, at)
            into.origins[:, at] = cursor.dataset, cursor.epoch, cursor.shard, cursor.row, cursor.skipped
        return replaced

    def _sample(
        self, position: int, cursor: _Cursor, reads: Iterator[SampleRead], replaced: list[Replacement]
    ) -> tuple[Sample, Pixels]:
        """The next of *reads*, that at *cursor*; or the first after it that is intact: *cursor* is moved there."""
        for _ in range(self._plan.recipe.max_damaged + 1):
            result = self._decoded(cursor, reads)
            if not isinstance(result, SampleDamagedError):
                return result
            name = self._readers[cursor.dataset].card.name
            replaced.append(Replacement(position, name, result.shard, result.key, result.offset, result.reason))
            self._next_of_slot(cursor)
            reads = self._readers[cursor.dataset].read_many([(cursor.shard, cursor.row)])
        raise DamageError(str(replaced[-1]), "mend the dataset, or allow for it with stream.max_damaged")

    def _decoded(self, cursor: _Cursor, reads: Iterator[SampleRead]) -> tuple[Sample, Pixels] | SampleDamagedError:
        shard = self._name(cursor.dataset, cursor.shard)
        self._on_activity(f"reading sample {cursor.row} of {shard}")
        sample = next(reads)
        if isinstance(sample, SampleDamagedError):
            return sample
        if fault := self._plan.labelling.fault(sample.labels):
            return self._refused(cursor, sample, fault)
        self._on_activity(f"decoding sample {cursor.row} of {shard}")
        try:
            return sample, decode(sample.data)[0]
        except ImageRejectedError as error:  # only where the digest is not checked
            return self._refused(cursor, sample, error.reason)

    def _refused(self, cursor: _Cursor, sample: Sample, reason: str) -> SampleDamagedError:
        offset = self._readers[cursor.dataset].member(cursor.shard, cursor.row).offset
        return SampleDamagedError(self._name(cursor.dataset, cursor.shard), sample.key, offset, reason)

    def _next_of_slot(self, cursor: _Cursor) -> None:
        cursor.position += self.mixture.partitions
        ref = self.mixture.orders[cursor.dataset].ref(cursor.position)
        cursor.epoch, cursor.shard, cursor.row = ref.epoch, ref.shard, ref.row
        cursor.skipped += 1


@dataclass
class _Cursor:
    """A position in the order of one dataset, the sample there, and how many damaged ones were skipped before it."""

    dataset: int
    position: int
    epoch: int
    shard: int
    row: int
    skipped: int = 0


def copied(arrays: BatchArrays) -> BatchArrays:
    """The same in memory of its own."""
    own = {name: getattr(arrays, name).copy(order="K") for name in ("images", "labels", "origins", "bits")}
    return replace(arrays, **own)


@dataclass(frozen=True)
class SlotLayout:
    """*num_slots* batches of *num_samples* images of *size* pixels behind the page, with *label_bytes* each."""

    num_slots: int
    num_samples: int
    size: int
    label_bytes: int = 0

    @property
    def slot_bytes(self) -> int:
        """Of one batch, rounded to whole pages."""
        needed = BatchArrays.num_bytes(self.num_samples, self.size, self.label_bytes)
        return -(-needed // PAGE_BYTES) * PAGE_BYTES

    @property
    def num_bytes(self) -> int:
        """Of the page and all slots."""
        return PAGE_BYTES + self.num_slots * self.slot_bytes

    def slot(self, memory: mmap.mmap, number: int) -> BatchArrays:
        """The arrays of one slot."""
        start = PAGE_BYTES + number * self.slot_bytes
        flat = np.frombuffer(memory, np.uint8, self.slot_bytes, start)
        return BatchArrays.over(flat, self.num_samples, self.size, self.label_bytes)
