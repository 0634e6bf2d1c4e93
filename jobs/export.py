"""``vitpipe export``: a checkpoint's weights for others: Hugging Face transformers, timm, or the official npz."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors.torch import save_file

from jobs.appear import appearing
from jobs.preprocessor import default_transform, to_preprocessor, to_pretrained
from pipeline.base.errors import InputError
from pipeline.base.store import Stores, normalise_uri, open_store, split_uri
from pipeline.checkpoints.warm import read_initial
from pipeline.images.transform import EvaluationTransform
from pipeline.models.convert.hf import export_hf, hf_config
from pipeline.models.convert.npz import export_npz
from pipeline.models.convert.timm import export_timm, timm_config
from pipeline.models.cost import count_parameters
from pipeline.models.vit import ViT
from pipeline.models.weights import ModelDescription, unpack_model
from pipeline.records.run import list_steps, read_run_card

FORMATS = ("hf", "timm", "npz")


def export(
    checkpoint: str, form: str, out: str, workspace: str | None, stores: Stores, *, ema: bool = False
) -> dict[str, Any]:
    """Write the weights of *checkpoint* to *out* and tell what was written.

    *checkpoint*: RUN@STEP or RUN (its newest) of *workspace*, or a path or URI of a model file. Raises InputError for
    what there is not and for what the other side does not compute, DamageError for a damaged file.
    """
    if form not in FORMATS:
        raise InputError(f"--format {form}: there are {', '.join(FORMATS)}")
    name, data = read_checkpoint(checkpoint, workspace, stores, ema=ema)
    model, description = unpack_model(data, name)
    writers = {"hf": _write_hf, "timm": _write_timm, "npz": _write_npz}
    with appearing(out) as path:
        writers[form](path, model, description)
    return {
        "checkpoint": name,
        "ema": ema,
        "format": form,
        "out": str(Path(out).expanduser().absolute()),
        "architecture": model.config.model_dump(mode="json"),
        "num_parameters": count_parameters(model.config),
        "num_classes": model.config.num_classes,
    }


def read_checkpoint(checkpoint: str, workspace: str | None, stores: Stores, *, ema: bool = False) -> tuple[str, bytes]:
    """What *checkpoint* is called in full, and the bytes of its model file."""
    if checkpoint.endswith(".safetensors"):
        if ema:
            raise InputError("--ema is for RUN@STEP", "give the path of its ema.safetensors")
        folder, name = split_uri(normalise_uri(checkpoint))
        try:
            return checkpoint, open_store(folder, stores).read(name)
        except FileNotFoundError:
            raise InputError(f"there is no {checkpoint}") from None
    if not workspace:
        raise InputError(
            f"{checkpoint}: of which workspace?", "add --workspace, or give the path of a .safetensors file"
        )
    store = open_store(normalise_uri(workspace), stores)
    if "@" not in checkpoint:
        read_run_card(store, checkpoint)
        steps = list_steps(store, checkpoint)
        if not steps:
            raise InputError(f"run {checkpoint!r} has no checkpoint yet")
        checkpoint = f"{checkpoint}@{steps[-1]}"
    return checkpoint, read_initial(store, checkpoint, stores, ema=ema)


def _write_hf(folder: Path, model: ViT, description: ModelDescription) -> None:
    tensors = export_hf(model)
    folder.mkdir()
    _write_json(folder / "config.json", hf_config(model.config, description.class_names))
    _write_json(folder / "preprocessor_config.json", to_preprocessor(_transform(description)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})  # transformers 4 asks for that


def _write_timm(folder: Path, model: ViT, description: ModelDescription) -> None:
    tensors = export_timm(model)
    folder.mkdir()
    pretrained = to_pretrained(_transform(description))
    _write_json(folder / "config.json", timm_config(model.config, pretrained, description.class_names))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_npz(path: Path, model: ViT, _description: ModelDescription) -> None:
    arrays = export_npz(model)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _transform(description: ModelDescription) -> EvaluationTransform:
    """The transform that the weights came with; the usual one when they came with none of the network's size."""
    size = description.architecture.image_size
    try:
        transform = EvaluationTransform.model_validate(description.transform)
    except ValidationError:
        return default_transform(size)
    return transform if transform.size == size else default_transform(size)


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
