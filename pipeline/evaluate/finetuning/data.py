"""The training samples of a task: streamed where there is augmentation, in memory where there is none.

A mask over the dataset selects the samples of a training. A stream over some samples is a stream over a subset: no
sample is read that is not trained on.

Shapes: N samples, B batch, S image size, K classes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.base.seeds import generator
from pipeline.base.store.protocol import Store
from pipeline.base.world import World
from pipeline.evaluate.model_ref import ModelRef
from pipeline.evaluate.recipe import FinetuneSettings
from pipeline.images.transforms import EvaluationTransform
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.eval_loader import EvaluationBatch, prefetch_spans
from pipeline.stream.loader import StreamLoader
from pipeline.stream.recipe import StreamRecipe
from pipeline.stream.subset import SubsetReader
from pipeline.train.device import compute_device

MAX_MEMORY_BYTES = 4_000_000_000  # of images in memory
_BATCH_SAMPLES = 64  # of passes over images without a gradient
Mask = NDArray[np.bool_]  # over the samples of a dataset (N,)


@dataclass(frozen=True)
class TuningBatch:
    """images uint8 (B, 3, S, S); labels int64 (B,), or float32 (B, K) where samples have several.

    ``coefficient`` and ``partners`` are those of mixup in the training loop; fine-tuning does not mix.
    """

    images: Tensor
    labels: Tensor
    coefficient: float = 1.0
    partners: Tensor | None = None


Batches = AbstractContextManager[Iterator[TuningBatch]]


class TuningSamples:
    """The samples of dataset *name*, for trainings on some of them.

    *used*: the only samples that any training uses, so no others are loaded into memory; None: all.
    """

    def __init__(
        self,
        workspace: Store,
        name: str,
        model_ref: ModelRef,
        settings: FinetuneSettings,
        num_classes: int,
        *,
        is_many: bool,
        used: Mask | None = None,
    ) -> None:
        self._workspace, self._name, self._settings, self._used = workspace, name, settings, used
        self._transform = model_ref.evaluation_transform
        self._num_classes, self._is_many = num_classes, is_many
        self._memory: tuple[Tensor, Tensor] | None = None

    def reader(self, mask: Mask) -> DatasetReader:
        """The samples of *mask* as a dataset of their own."""
        return SubsetReader(self._workspace, self._name, mask)

    def batches(self, mask: Mask, seed: int, first_step: int = 0) -> Batches:
        """Endless batches of the samples of *mask*, from step *first_step* on.

        Epochs follow each other without padding or drop. Raises InputError for images that do not fit into memory.
        """
        if self._settings.augment is None:
            return nullcontext(self._from_memory(np.flatnonzero(mask), seed, first_step))
        return closing(self._streamed(mask, seed, first_step))

    def _streamed(self, mask: Mask, seed: int, first_step: int) -> Generator[TuningBatch, None, None]:
        settings = self._settings
        if settings.augment is None:
            raise AssertionError("a stream is for augmentation")
        recipe = StreamRecipe(
            batch_size=settings.batch_size,
            partitions=1,
            augment=settings.augment.model_copy(update={"size": self._transform.size}),
            workers=settings.workers,
        )
        loader = StreamLoader(
            SubsetReader(self._workspace, self._name, mask),
            recipe,
            seed=seed,
            world=World(),
            position=first_step * settings.batch_size,
            labels="many" if self._is_many else "one",
            num_classes=self._num_classes,
        )
        with closing(loader):
            for batch in loader:
                yield _on_device(batch.images, batch.labels)

    def _from_memory(self, rows: NDArray[np.int64], seed: int, first_step: int) -> Iterator[TuningBatch]:
        if self._memory is None:
            self._memory = self._load()
        images, labels = self._memory
        loaded_rows = rows if self._used is None else (np.cumsum(self._used) - 1)[rows]
        for chosen in islice(epochs(loaded_rows, self._settings.batch_size, seed), first_step, None):
            yield _on_device(images[chosen], labels[chosen])

    def _load(self) -> tuple[Tensor, Tensor]:
        used = self._used
        with closing(DatasetReader(self._workspace, self._name) if used is None else self.reader(used)) as reader:
            count, size = reader.card.num_samples, self._transform.size
            if count * 3 * size**2 > MAX_MEMORY_BYTES:
                limit = f"{MAX_MEMORY_BYTES / 1e9:g} GB of memory"
                raise InputError(
                    f"{self._name}: {count:,} images of {size} pixels take more than {limit}",
                    "set augment of the fine-tuning: then they are streamed",
                )
            images, labels, done = torch.empty((count, 3, size, size), dtype=torch.uint8), [], 0
            for batch in iterate_images(reader, self._transform):
                images[done : done + len(batch.images)] = batch.images
                labels.append(labels_of(batch, self._num_classes, is_many=self._is_many))
                done += len(batch.images)
        return images, torch.cat(labels)


def iterate_images(reader: DatasetReader, transform: EvaluationTransform) -> Generator[EvaluationBatch, None, None]:
    """Every sample once, in order, decoded ahead."""
    total = reader.card.num_samples
    spans = [(start, min(start + _BATCH_SAMPLES, total)) for start in range(0, total, _BATCH_SAMPLES)]
    return prefetch_spans(reader, transform, spans)


def labels_of(batch: EvaluationBatch, num_classes: int, *, is_many: bool) -> Tensor:
    """int64 (B,), or float32 (B, K) of 0 and 1. Raises InputError for a sample without the one label that it needs."""
    if not is_many:
        if bool((batch.labels < 0).any()):
            raise InputError("a sample has no label", "judge on datasets with labels")
        return batch.labels
    targets = torch.zeros(len(batch.label_lists), num_classes)
    for row, labels in enumerate(batch.label_lists):
        targets[row, list(labels)] = 1.0
    return targets


def epochs(rows: NDArray[np.int64], batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of *rows*, each epoch in its own order, joined without padding or drop."""
    pending: list[NDArray[np.int64]] = []
    epoch = 0
    while True:
        while sum(map(len, pending)) < batch_size:
            pending.append(generator(seed, "finetune", epoch).permutation(rows))
            epoch += 1
        joined = np.concatenate(pending)
        pending = [joined[batch_size:]]
        yield torch.from_numpy(joined[:batch_size])


def concatenate_labels(batches: Sequence[Tensor]) -> NDArray[np.generic]:
    """The labels of batches as the metrics take them: int64 (N,), or uint8 (N, K)."""
    labels = torch.cat(list(batches))
    return (labels.to(torch.uint8) if labels.is_floating_point() else labels).numpy()


def _on_device(images: Tensor, labels: Tensor) -> TuningBatch:
    device = compute_device()
    return TuningBatch(images.to(device), labels.to(device))
