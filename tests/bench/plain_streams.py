"""What the loader is compared with: webdataset with Pillow in torch's DataLoader, and a bare loop in two processes.

Both make uint8 batches (B, 3, 224, 224) of random resized crops (5-100 % of the area, bilinear) and flips. The bare
loop has its files in memory, calls our own decode and augment one after the other, and hands its batches to nobody.
"""

from __future__ import annotations

import math
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from pipeline.images.decode import decode
from pipeline.stream.augment import augment
from pipeline.stream.recipe import AugmentRecipe

SIZE, BATCH, WORKERS = 224, 128, 2
_RECIPE = AugmentRecipe(size=SIZE)


def webdataset_batches(shards: list[Path]) -> Iterator[Any]:
    """Endless; what webdataset's own examples do, with a shuffle buffer of 1,000."""
    dataset = (
        webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=len(shards), seed=0)
        .shuffle(1_000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(_random_view, int)
        .batched(BATCH, collation_fn=_collate, partial=False)
        .repeat()
    )
    return iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True))


def _random_view(image: Image.Image) -> np.ndarray[Any, Any]:
    """A random resized crop and a flip, as torchvision's RandomResizedCrop on a PIL image does it."""
    resized = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=_random_box(*image.size))
    if random.random() < 0.5:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(resized).transpose(2, 0, 1)


def _random_box(width: int, height: int) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * random.uniform(0.05, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def _collate(samples: list[tuple[Any, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    images = np.stack([image for image, _ in samples])
    return torch.from_numpy(images), torch.tensor([label for _, label in samples])


@contextmanager
def bare_loops(files: list[bytes]) -> Iterator[Any]:
    """Processes that work while they are inside; a function that gives how many images they did in so many seconds."""
    context = multiprocessing.get_context("spawn")
    go, done = context.Event(), [context.Value("q", 0) for _ in range(WORKERS)]
    processes = [
        context.Process(target=_loop, args=(files[number::WORKERS], number, go, done[number]), daemon=True)
        for number in range(WORKERS)
    ]
    for process in processes:
        process.start()

    def images_per_second(seconds: float) -> float:
        before = [one.value for one in done]
        go.set()
        while not all(one.value > count for one, count in zip(done, before, strict=True)):
            assert all(process.is_alive() for process in processes)
            time.sleep(0.01)  # until both are under way
        first, started = sum(one.value for one in done), time.perf_counter()
        time.sleep(seconds)
        rate = (sum(one.value for one in done) - first) / (time.perf_counter() - started)
        go.clear()
        return rate

    try:
        yield images_per_second
    finally:
        for process in processes:
            process.kill()
            process.join()


def _loop(files: list[bytes], number: int, go: Any, done: Synchronized[int]) -> None:
    torch.set_num_threads(1)
    batch = np.empty((BATCH, 3, SIZE, SIZE), np.uint8)
    epoch = 0
    while True:
        for at, data in enumerate(files):
            if at % 16 == 0:
                go.wait()
            np.copyto(batch[at % BATCH], augment(decode(data)[0], _RECIPE, 0, epoch, str(at)).transpose(2, 0, 1))
            done.value += 1
        epoch += 1
