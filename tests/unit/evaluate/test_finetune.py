"""Fine-tuning learns what can be told apart, from a network and from raw pixels, the same way each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.store import Store, open_store
from pipeline.evaluate.subject import Subject, load_network
from pipeline.evaluate.suite import FinetuneSettings
from pipeline.evaluate.transfer.finetune import TaskImages, _batches, finetune, load_images, predict
from pipeline.records.score import PIXELS
from tests.support.datasets import make_dataset
from tests.support.subjects import TRANSFORM, put_network, tiny

RAW = Subject(PIXELS, "", TRANSFORM, None)


def stripes(count: int, seed: int) -> TaskImages:
    """Class 0 is bright on the left, class 1 at the top, class 2 nowhere; with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randint(0, 90, (count, 3, 8, 8), generator=generator)
    images[labels == 0, :, :, :4] += 120
    images[labels == 1, :, :4] += 120
    return TaskImages(images.to(torch.uint8), labels, tuple(f"{seed}-{row}" for row in range(count)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty workspace."""
    return open_store(str(tmp_path))


@pytest.mark.parametrize("pixels", [False, True], ids=["network", "pixels"])
def test_it_learns_a_separable_set(store: Store, pixels: bool) -> None:
    subject = RAW if pixels else put_network(store, tiny(7, pre_logits=12))
    settings = FinetuneSettings(steps=80, batch_size=32)
    network = finetune(store, subject, stripes(96, 1), 3, settings, 0.1 if not pixels else 0.03, seed=0)
    test = stripes(100, 2)
    probabilities = predict(network, test.images)
    assert probabilities.shape == (100, 3)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(100), abs=1e-5)
    assert (probabilities.argmax(1) == test.labels.numpy()).mean() > 0.9
    assert not network.training


def test_a_seed_fixes_the_outcome(store: Store) -> None:
    subject = put_network(store, tiny(dropout=0.1))
    settings = FinetuneSettings(steps=3, batch_size=16)
    data = stripes(40, 1)
    first, again, other = (
        predict(finetune(store, subject, data, 3, settings, 0.1, seed=seed), data.images) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_whole_pretraining_head_goes_and_the_new_one_starts_at_zero(store: Store) -> None:
    subject = put_network(store, tiny(7, pre_logits=12))
    settings = FinetuneSettings(steps=1, batch_size=8)
    network = finetune(store, subject, stripes(16, 1), 3, settings, 1e-12, seed=0)
    assert network.pre_logits is None
    assert network.head.weight.shape == (3, 32)
    assert network.head.weight.abs().max() < 1e-9
    before = load_network(store, subject)
    torch.testing.assert_close(network.blocks[1].mlp.up.weight, before.blocks[1].mlp.up.weight)


def test_each_epoch_holds_every_sample_once_in_its_own_order() -> None:
    data = stripes(10, 1)
    rows = {tuple(image.flatten().tolist()): row for row, image in enumerate(data.images)}
    stream = _batches(data, 4, seed=0)
    seen = [rows[tuple(image.flatten().tolist())] for _ in range(5) for image in next(stream).images]
    assert sorted(seen[:10]) == list(range(10)) == sorted(seen[10:])
    assert seen[:10] != seen[10:]


def test_batches_larger_than_the_task_are_filled_from_the_next_epochs() -> None:
    batch = next(_batches(stripes(10, 1), 25, seed=0))
    assert batch.images.shape[0] == 25


def test_images_are_loaded_under_the_transform(store: Store) -> None:
    make_dataset(store, "d", num_samples=11, num_classes=4, size=20)
    found = load_images(store, RAW, "d")
    assert found.images.shape == (11, 3, 8, 8)
    assert found.images.dtype == torch.uint8
    taken = found.take(np.arange(11) > 7)
    assert taken.keys == found.keys[8:]
    assert torch.equal(taken.labels, found.labels[8:])
