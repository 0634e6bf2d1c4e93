"""``vitpipe import``: others' weights as a model.safetensors of ours, to be evaluated and tuned without a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs.appear import appearing
from jobs.preprocessor import HALF, Input, default_transform, from_preprocessor, from_pretrained
from pipeline.base.digests import sha256_hex
from pipeline.base.errors import InputError
from pipeline.base.store import Store, Stores, normalise_uri, open_store, split_uri
from pipeline.models.convert.files import read_tensors
from pipeline.models.convert.hf import hf_class_names, import_hf
from pipeline.models.convert.npz import import_npz
from pipeline.models.convert.pixels import fold_normalisation
from pipeline.models.convert.rows import Imported, Tensors
from pipeline.models.convert.timm import import_timm
from pipeline.models.cost import count_parameters
from pipeline.models.weights import ModelDescription, pack_weights
from pipeline.records.run import WEIGHTS

_FILES_OF_A_FOLDER = (WEIGHTS, "pytorch_model.bin")  # in the order of preference
_MAX_JSON_BYTES = 16 << 20  # 21,843 class names take 1 MB
Gelu = Literal["tanh", "exact"]


@dataclass(frozen=True)
class Told:
    """What the caller tells of weights that do not tell it themselves."""

    heads: int | None = None
    gelu: Gelu | None = None
    image_size: int = 224


@dataclass
class _Foreign:
    """What was read, and what somebody should know of how it was understood."""

    form: str
    model: Imported
    input: Input
    class_names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def import_weights(file: str, out: str, stores: Stores, told: Told) -> dict[str, Any]:
    """Write *out*/model.safetensors from *file* and tell what it is.

    *file*: a path or URI of .npz, .safetensors or .bin, or a folder that holds one beside its config.json. Raises
    InputError, naming tensors, for what is no plain ViT.
    """
    store, name = _locate(file, stores)
    foreign = _understand(read_tensors(store.read(name), name), store, name, told)
    config, state = foreign.model.config, foreign.model.state
    if told.gelu and config.gelu != told.gelu:
        config = config.model_copy(update={"gelu": told.gelu})
    if (foreign.input.mean, foreign.input.std) != (HALF, HALF):
        state = fold_normalisation(state, foreign.input.mean, foreign.input.std)
        foreign.notes.append("another normalisation of pixels was folded into the patch projection")
    transform = foreign.input.transform or default_transform(config.image_size)
    if foreign.input.transform is None:
        foreign.notes.append(f"no transform of ours was told: {transform.model_dump(mode='json')} is taken")
    names = foreign.class_names if len(foreign.class_names) == config.num_classes else ()
    data = pack_weights(state, ModelDescription(config, transform.model_dump(mode="json"), names))
    with appearing(out) as folder:
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
    for name in _FILES_OF_A_FOLDER:
        if folder.head(name) is not None:
            return folder, name
    parent, name = split_uri(uri)
    store = open_store(parent, stores)
    if store.head(name) is None:
        raise InputError(f"there are no weights at {file}", f"a file, or a folder with {_FILES_OF_A_FOLDER[0]}")
    return store, name


def _understand(tensors: Tensors, store: Store, name: str, told: Told) -> _Foreign:
    """Whose tensors these are shows in their names."""
    if "embedding/kernel" in tensors or "params/embedding/kernel" in tensors:
        return _npz(tensors, name, told)
    if any(key.endswith("embeddings.cls_token") for key in tensors):
        return _hf(tensors, store, name)
    if "patch_embed.proj.weight" in tensors:
        return _timm(tensors, store, name, told)
    if "patches.projection.weight" in tensors:
        raise InputError(f"{name} is of this program already", "use it as it is")
    known = "embedding/kernel (npz), embeddings.cls_token (transformers), patch_embed.proj.weight (timm)"
    raise InputError(f"{name} is no ViT that is known here: it has none of {known}")


def _npz(tensors: Tensors, name: str, told: Told) -> _Foreign:
    model = import_npz(tensors, name, told.image_size)
    notes = [] if told.gelu else ["GELU by tanh, as in the JAX code; weights that came from torch want --gelu exact"]
    return _Foreign("npz", model, Input(), notes=[*notes, "pixels are taken to be in [-1, 1]"])


def _hf(tensors: Tensors, store: Store, name: str) -> _Foreign:
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


def _timm(tensors: Tensors, store: Store, name: str, told: Told) -> _Foreign:
    tree = _json_beside(store, "config.json") or {}
    model = import_timm(tensors, tree, name, told.heads, told.gelu)
    pretrained = tree.get("pretrained_cfg")
    given = from_pretrained(pretrained if isinstance(pretrained, dict) else {}, model.config.image_size)
    notes = [] if given.told else ["pixels are taken to be in [-1, 1]"]
    labels = tree.get("label_names")
    names = tuple(map(str, labels)) if isinstance(labels, list) else ()
    return _Foreign("timm", model, given, names, notes)


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
