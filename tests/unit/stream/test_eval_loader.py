"""What evaluation reads: every sample once, in the order of the shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.store import Store, open_store
from pipeline.base.world import World
from pipeline.images.decode import decode
from pipeline.images.transforms import EvaluationTransform
from pipeline.shard.recipe import ShardRecipe
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.eval_loader import evaluation_batches, padded_batches
from tests.support.datasets import corpus_of, shard_corpus
from tests.support.pictures import noise, png

TRANSFORM = EvaluationTransform(size=12, resize=14)


@pytest.mark.parametrize("batch_size", [1, 7, 10, 50, 64])
def test_every_sample_comes_once_in_the_order_of_the_shards(tiny_workspace: Store, batch_size: int) -> None:
    reader = DatasetReader(tiny_workspace, "tiny")
    batches = list(evaluation_batches(reader, TRANSFORM, batch_size))
    assert [key for batch in batches for key in batch.keys] == [key for shard in range(4) for key in reader.keys(shard)]
    sizes = [len(batch.keys) for batch in batches]
    assert sizes == [batch_size] * (50 // batch_size) + ([50 % batch_size] if 50 % batch_size else [])


def test_pixels_and_labels_are_those_of_the_samples(tiny_workspace: Store) -> None:
    reader = DatasetReader(tiny_workspace, "tiny")
    samples = [reader.read(shard, row) for shard, entry in enumerate(reader.shards) for row in range(entry.num_samples)]
    batches = list(evaluation_batches(reader, TRANSFORM, 8))
    images, labels = torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])
    assert (images.dtype, images.shape) == (torch.uint8, (50, 3, 12, 12))
    assert labels.dtype == torch.int64
    for at, sample in enumerate(samples):
        wanted = TRANSFORM.apply(decode(sample.data)[0])
        np.testing.assert_array_equal(images[at].numpy(), wanted.transpose(2, 0, 1))
        assert (labels[at].item(),) == sample.labels


def test_samples_without_a_label_have_minus_one(tmp_path: Path) -> None:
    images: dict[str, bytes | None] = {str(at): png(noise(4, 4, at)) for at in range(3)}
    corpus = corpus_of(images, {"1": [1]}, ("a", "b"))
    workspace = open_store(str(tmp_path))
    shard_corpus(workspace, "tiny", corpus, ShardRecipe())
    reader = DatasetReader(workspace, "tiny")
    labels = torch.cat([batch.labels for batch in evaluation_batches(reader, TRANSFORM, 2)]).tolist()
    assert sorted(labels) == [-1, -1, 1]
    assert labels == [(reader.read(0, row).labels or (-1,))[0] for row in range(3)]


@pytest.mark.parametrize("batch_size", [4, 7, 50])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_have_equally_many_full_batches_and_together_every_sample_once(
    tiny_workspace: Store, batch_size: int, world_size: int
) -> None:
    reader = DatasetReader(tiny_workspace, "tiny")
    ranks = [list(padded_batches(reader, TRANSFORM, batch_size, World(rank, world_size))) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {-(-50 // (batch_size * world_size))}
    side_by_side = [batch for batches in zip(*ranks, strict=True) for batch in batches]
    for batch in side_by_side:
        assert batch.images.shape == (batch_size, 3, 12, 12)
        assert (batch.valid.shape, batch.valid.dtype) == ((batch_size,), torch.bool)
        assert [key != "" for key in batch.keys] == batch.valid.tolist()
        assert set(batch.labels[~batch.valid].tolist()) <= {-1}
        assert not batch.images[~batch.valid].any()
    images = torch.cat([batch.images[batch.valid] for batch in side_by_side])
    (whole,) = evaluation_batches(reader, TRANSFORM, 50)
    assert [key for batch in side_by_side for key in batch.keys if key] == whole.keys
    assert images.equal(whole.images)
