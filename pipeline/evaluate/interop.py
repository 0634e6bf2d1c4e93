"""Weights in the formats of others: export to and import from Hugging Face transformers, timm, and the official npz.

::

    export          RUN@STEP or a model file  --> hf or timm (a folder), npz (a file)
    import_weights  hf, timm or npz           --> a folder with our model.safetensors
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from safetensors.torch import save_file

from pipeline.base.atomic_output import atomic_output
from pipeline.base.digests import sha256_hex
from pipeline.base.errors import InputError
from pipeline.base.store.open import normalise_uri, open_store, split_uri
from pipeline.base.store.protocol import Store, Stores
from pipeline.checkpoints.warm_start import read_initial
from pipeline.images.preprocessor_config import (
    HALF,
    Input,
    default_transform,
    from_preprocessor,
    from_pretrained,
    to_preprocessor,
    to_pretrained,
)
from pipeline.images.transforms import EvaluationTransform
from pipeline.models.convert.foreign_file import read_tensors
from pipeline.models.convert.hf import export_hf, hf_class_names, hf_config, import_hf
from pipeline.models.convert.npz import export_npz, import_npz
from pipeline.models.convert.tensor_map import ConvertedWeights, Tensors, fold_normalisation
from pipeline.models.convert.timm import export_timm, import_timm, timm_config
from pipeline.models.cost import count_parameters
from pipeline.models.vit import ViT
from pipeline.models.weights import ModelDescription, pack_weights, unpack_model
from pipeline.records.run import WEIGHTS, list_steps, read_run_card

_FORMATS = ("hf", "timm", "npz")
_TENSOR_FILES = (WEIGHTS, "pytorch_model.bin")  # that a folder may hold, in the order of preference
_MAX_JSON_BYTES = 16 << 20  # 21,843 class names take 1 MB
Gelu = Literal["tanh", "exact"]


# -- export


def export(
    checkpoint: str, form: str, out: str, workspace: str | None, stores: Stores, *, ema: bool = False
) -> dict[str, Any]:
    """Write the weights of *checkpoint* to *out*, and describe what was written.

    *checkpoint*: RUN@STEP or RUN (its newest) of *workspace*, or a path or URI of a model file. Raises InputError for
    what there is not and for what the other format's network does not compute, DamageError for a damaged file.
    """
    if form not in _FORMATS:
        raise InputError(f"--format {form}: there are {', '.join(_FORMATS)}")
    name, data = _read_checkpoint(checkpoint, workspace, stores, ema=ema)
    model, description = unpack_model(data, name)
    write = {"hf": _write_hf, "timm": _write_timm, "npz": _write_npz}[form]
    with atomic_output(out) as path:
        write(path, model, description)
    return {
        "checkpoint": name,
        "ema": ema,
        "format": form,
        "out": str(Path(out).expanduser().absolute()),
        "architecture": model.config.model_dump(mode="json"),
        "num_parameters": count_parameters(model.config),
        "num_classes": model.config.num_classes,
    }


def _read_checkpoint(checkpoint: str, workspace: str | None, stores: Stores, *, ema: bool = False) -> tuple[str, bytes]:
    """The full name of *checkpoint*, and the bytes of its model file."""
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
    """The transform that the weights came with; the default one when they came with none of the network's size."""
    size = description.architecture.image_size
    try:
        transform = EvaluationTransform.model_validate(description.transform)
    except ValidationError:
        return default_transform(size)
    return transform if transform.size == size else default_transform(size)


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


# -- import


@dataclass(frozen=True)
class ImportHints:
    """What the caller knows of weights whose files do not say it."""

    heads: int | None = None
    gelu: Gelu | None = None
    image_size: int = 224


@dataclass
class _Foreign:
    """Converted weights of another format; *notes*: what was assumed, for the user to check."""

    form: str
    model: ConvertedWeights
    input: Input
    class_names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def import_weights(file: str, out: str, stores: Stores, hints: ImportHints) -> dict[str, Any]:
    """Write *out*/model.safetensors from *file*, and describe it.

    *file*: a path or URI of .npz, .safetensors or .bin, or a folder that holds one beside its config.json. Raises
    InputError, naming tensors, for what is no plain ViT.
    """
    store, name = _locate(file, stores)
    foreign = _convert(read_tensors(store.read(name), name), store, name, hints)
    config, state = foreign.model.config, foreign.model.state
    if hints.gelu and config.gelu != hints.gelu:
        config = config.model_copy(update={"gelu": hints.gelu})
    if (foreign.input.mean, foreign.input.std) != (HALF, HALF):
        state = fold_normalisation(state, foreign.input.mean, foreign.input.std)
        foreign.notes.append("another normalisation of pixels was folded into the patch projection")
    transform = foreign.input.transform or default_transform(config.image_size)
    if foreign.input.transform is None:
        foreign.notes.append(f"no transform of ours was told: {transform.model_dump(mode='json')} is taken")
    names = foreign.class_names if len(foreign.class_names) == config.num_classes else ()
    data = pack_weights(state, ModelDescription(config, transform.model_dump(mode="json"), names))
    with atomic_output(out) as folder:
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(data)
    return {
        "file": file,
        "format": foreign.form,
        "out": str(Path(out).expanduser().absolute() / WEIGHTS),
        "sha256": sha256_hex(data),
        "architecture": config.model_dump(mode="json"),
        "num_parameters": count_parameters(config),
        "num_classes": config.num_classes,
        "class_names": bool(names),
        "transform": transform.model_dump(mode="json"),
        "notes": foreign.notes,
    }


def _locate(file: str, stores: Stores) -> tuple[Store, str]:
    """The store of the folder that holds the tensors, and the file's name. Raises InputError when there is none."""
    uri = normalise_uri(file)
    folder = open_store(uri, stores)
    for name in _TENSOR_FILES:
        if folder.head(name) is not None:
            return folder, name
    parent, name = split_uri(uri)
    store = open_store(parent, stores)
    if store.head(name) is None:
        raise InputError(f"there are no weights at {file}", f"a file, or a folder with {_TENSOR_FILES[0]}")
    return store, name


def _convert(tensors: Tensors, store: Store, name: str, hints: ImportHints) -> _Foreign:
    """The format is recognised by the names of the tensors. Raises InputError for an unknown one."""
    if "embedding/kernel" in tensors or "params/embedding/kernel" in tensors:
        return _from_npz(tensors, name, hints)
    if any(key.endswith("embeddings.cls_token") for key in tensors):
        return _from_hf(tensors, store, name)
    if "patch_embed.proj.weight" in tensors:
        return _from_timm(tensors, store, name, hints)
    if "patches.projection.weight" in tensors:
        raise InputError(f"{name} is of this program already", "use it as it is")
    known = "embedding/kernel (npz), embeddings.cls_token (transformers), patch_embed.proj.weight (timm)"
    raise InputError(f"{name} is no ViT that is known here: it has none of {known}")


def _from_npz(tensors: Tensors, name: str, hints: ImportHints) -> _Foreign:
    model = import_npz(tensors, name, hints.image_size)
    notes = [] if hints.gelu else ["GELU by tanh, as in the JAX code; weights that came from torch want --gelu exact"]
    return _Foreign("npz", model, Input(), notes=[*notes, "pixels are taken to be in [-1, 1]"])


def _from_hf(tensors: Tensors, store: Store, name: str) -> _Foreign:
    tree = _json_beside(store, "config.json")
    if tree is None:
        raise InputError(
            f"{name} is transformers', but no config.json stands beside it", "heads and epsilon stand there"
        )
    model = import_hf(tensors, tree, name)
    preprocessor = _json_beside(store, "preprocessor_config.json")
    if preprocessor is None:
        return _Foreign("hf", model, Input(), hf_class_names(tree), ["pixels are taken to be in [-1, 1]"])
    return _Foreign("hf", model, from_preprocessor(preprocessor, model.config.image_size), hf_class_names(tree))


def _from_timm(tensors: Tensors, store: Store, name: str, hints: ImportHints) -> _Foreign:
    tree = _json_beside(store, "config.json") or {}
    model = import_timm(tensors, tree, name, hints.heads, hints.gelu)
    pretrained = tree.get("pretrained_cfg")
    pixels = from_pretrained(pretrained if isinstance(pretrained, dict) else {}, model.config.image_size)
    notes = [] if pixels.is_specified else ["pixels are taken to be in [-1, 1]"]
    labels = tree.get("label_names")
    names = tuple(map(str, labels)) if isinstance(labels, list) else ()
    return _Foreign("timm", model, pixels, names, notes)


def _json_beside(store: Store, name: str) -> dict[str, Any] | None:
    try:
        tree = json.loads(store.read_range(name, 0, _MAX_JSON_BYTES))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        raise InputError(f"{name} is no JSON") from None
    if not isinstance(tree, dict):
        raise InputError(f"{name} is no JSON object")
    return tree
