"""Small networks in a workspace, as evaluation meets them."""

from __future__ import annotations

import torch

from pipeline.base.digests import sha256_hex
from pipeline.base.store import Store
from pipeline.evaluate.subject import Subject
from pipeline.images.transform import EvaluationTransform
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT
from pipeline.models.weights import ModelDescription, pack_weights

TRANSFORM = EvaluationTransform(size=8, resize=8, mode="square").model_dump(mode="json")


def tiny(num_classes: int = 4, **changes: object) -> ViTConfig:
    """A network of 8 x 8 pixels."""
    shape = {"image_size": 8, "patch_size": 4, "width": 32, "depth": 2, "mlp_width": 64, "heads": 2, "pool": "gap"}
    return ViTConfig.model_validate(shape | {"num_classes": num_classes} | changes)


def put_network(workspace: Store, config: ViTConfig, seed: int = 0, step: int = 100) -> Subject:
    """Store a network whose head is drawn too; the subject that names it."""
    model = ViT(config, seed=seed)
    if model.head is not None:
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
    names = tuple(f"class-{label}" for label in range(config.num_classes))
    data = pack_weights(model.state_dict(), ModelDescription(config, TRANSFORM, names))
    key = f"runs/r/checkpoints/step-{step:08d}/model-{seed}.safetensors"
    workspace.put(key, data)
    return Subject(sha256_hex(data), key, TRANSFORM, step)
