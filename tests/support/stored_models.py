"""Small networks in a workspace, as evaluation meets them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from pipeline.base.digests import sha256_hex
from pipeline.base.store import Store
from pipeline.evaluate.model_ref import ModelRef
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import SETTINGS, Task
from pipeline.images.transforms import EvaluationTransform
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT
from pipeline.models.weights import ModelDescription, pack_weights
from pipeline.records.score import PIXELS, EvaluationKey
from pipeline.shard.recipe import ShardRecipe
from tests.support.datasets import corpus_of, shard_corpus
from tests.support.pictures import png

TRANSFORM = EvaluationTransform(size=8, resize=8, mode="square").model_dump(mode="json")


def tiny(num_classes: int = 4, **changes: object) -> ViTConfig:
    """A network of 8 x 8 pixels."""
    shape = {"image_size": 8, "patch_size": 4, "width": 32, "depth": 2, "mlp_width": 64, "heads": 2, "pool": "gap"}
    return ViTConfig.model_validate(shape | {"num_classes": num_classes} | changes)


def put_network(
    workspace: Store, config: ViTConfig, seed: int = 0, step: int = 100, names: tuple[str, ...] | None = None
) -> ModelRef:
    """Store a network whose head is drawn too; the ModelRef that names it. *names* of its classes; None: those that
    :func:`put_pictures` gives."""
    model = ViT(config, seed=seed)
    if model.head is not None:
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
    if names is None:
        names = tuple(f"class-{label}" for label in range(config.num_classes))
    data = pack_weights(model.state_dict(), ModelDescription(config, TRANSFORM, names))
    key = f"runs/r/checkpoints/step-{step:08d}/model-{seed}.safetensors"
    workspace.put(key, data)
    return ModelRef(sha256_hex(data), key, TRANSFORM, step)


RAW = ModelRef(PIXELS, "", TRANSFORM, None)


def planned_of(
    evaluator: str, model_ref: ModelRef = RAW, test: str = "test", seed: int = 0, **settings: Any
) -> PlannedEvaluation:
    """An evaluation on the task of the datasets "train" and *test*, with 30 % of the training samples held out."""
    key = EvaluationKey(
        weights_digest=model_ref.weights_digest,
        evaluator=evaluator,
        protocol_version=1,
        task="task",
        dataset_digests=("1", "2"),
        transform=TRANSFORM,
        settings=SETTINGS[evaluator].model_validate(settings).model_dump(mode="json") | {"validation": 0.3},
        seed=seed,
    )
    return PlannedEvaluation(key, model_ref, Task(train="train", test=test, validation=0.3))


def put_pictures(store: Store, name: str, pixels: Any, labels: Iterable[int | list[int]], num_classes: int) -> None:
    """A dataset of *pixels* uint8 (N, S, S, 3), sample i with the label or labels i, in shards of 50."""
    images: dict[str, bytes | None] = {f"{row:05d}.png": png(image) for row, image in enumerate(pixels)}
    lists = [[int(one) for one in np.atleast_1d(several)] for several in labels]
    names = tuple(f"class-{label}" for label in range(num_classes))
    corpus = corpus_of(images, dict(zip(images, lists, strict=True)), names)
    shard_corpus(store, name, corpus, ShardRecipe(max_samples=50))
