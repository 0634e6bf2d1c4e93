"""The stream in a training loop of your own: a linear classifier on pixels, stopped half-way and resumed.

``python examples/train_loop.py WORKSPACE DATASET``, after ``vitpipe shard ... -w WORKSPACE --name DATASET``.
"""

from __future__ import annotations

import sys

import torch

from pipeline.base.store import open_store
from pipeline.base.world import World
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.loader import StreamLoader
from pipeline.stream.recipe import AugmentRecipe, StreamRecipe

SIZE, STEPS = 16, 10


def loader_of(reader: DatasetReader) -> StreamLoader:
    """Batches of 8 images of SIZE x SIZE pixels, the same ones in the same order every time."""
    recipe = StreamRecipe(batch_size=8, partitions=4, augment=AugmentRecipe(crop="resized", size=SIZE))
    return StreamLoader(reader, recipe, seed=0, world=World())


def train(model: torch.nn.Module, loader: StreamLoader, steps: int) -> list[float]:
    """*steps* updates; the loss of each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _, batch in zip(range(steps), loader, strict=False):
        pixels = batch.images.float().flatten(1) / 127.5 - 1  # uint8 (B, 3, S, S) -> (B, 3 S S) in [-1, 1]
        loss = torch.nn.functional.cross_entropy(model(pixels), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(workspace: str, dataset: str) -> None:
    """Train in one go, and in two halves: the losses are equal."""
    reader = DatasetReader(open_store(workspace), dataset)
    num_classes = len(reader.card.class_names)

    torch.manual_seed(0)
    whole = train(torch.nn.Linear(3 * SIZE * SIZE, num_classes), loader_of(reader), STEPS)

    torch.manual_seed(0)
    model, loader = torch.nn.Linear(3 * SIZE * SIZE, num_classes), loader_of(reader)
    halves = train(model, loader, STEPS // 2)
    state = loader.state_dict()  # the stream position: one integer, and what it belongs to

    resumed = loader_of(reader)
    resumed.load_state_dict(state)
    halves += train(model, resumed, STEPS - STEPS // 2)
    print("losses:", *(f"{loss:.4f}" for loss in halves))
    print("resumed exactly" if halves == whole else "resumed, but not exactly")


if __name__ == "__main__":
    main(*sys.argv[1:])
