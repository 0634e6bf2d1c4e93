"""What the inspect evaluator left beside its result: arrays to look at. All of them may be missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.store.protocol import Store
from pipeline.records.score import ARTEFACTS, file_key
from pipeline.report.scores import Joined

INSPECT = "inspect"
Array = npt.NDArray[Any]

_NUM_DIMENSIONS = {
    "patch_filters": 4,
    "position_similarity": 4,
    "sample_images": 4,
    "sample_labels": 1,
    "sample_predictions": 1,
    "sample_probabilities": 1,
    "confusion": 2,
}


@dataclass(frozen=True)
class Samples:
    """Test images with what the model said of them: (n, H, W, 3) uint8 and three arrays of (n,)."""

    images: Array
    labels: Array
    predictions: Array
    probabilities: Array


@dataclass(frozen=True)
class Artefacts:
    """What there is to look at, from which step and task; None where it was not recorded."""

    step: int | None = None
    task: str = ""
    patch_filters: Array | None = None  # (K, P, P, 3) float32
    position_similarity: Array | None = None  # (gh, gw, gh, gw) float32
    samples: Samples | None = None
    confusion: Array | None = None  # (K, K) int64, rows are the truth


def read_artefacts(workspace: Store, joined: Iterable[Joined]) -> Artefacts:
    """The artefacts of the newest inspected step; empty when nothing was inspected.

    Raises DamageError when the file is not what its result says, or an array has another shape than promised.
    """
    inspected = [item for item in joined if item.result.key.evaluator == INSPECT and item.step is not None]
    if not inspected:
        return Artefacts()
    newest = min(inspected, key=lambda item: (-(item.step or 0), item.result.key.task, item.result.id))
    promised = newest.result.files.get(ARTEFACTS, "")
    where = file_key(newest.result.id, ARTEFACTS, promised)
    try:
        data = workspace.read(where)
    except FileNotFoundError:
        return Artefacts(newest.step, newest.result.key.task)
    if promised != sha256_hex(data):
        raise DamageError(f"{where} is not what its result lists", "delete the evaluation and evaluate again")
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise DamageError(f"{where} cannot be read: {error}", "delete the evaluation and evaluate again") from None
    return _checked(arrays, where, newest)


def _checked(arrays: dict[str, Array], where: str, newest: Joined) -> Artefacts:
    for name, dimensions in _NUM_DIMENSIONS.items():
        if name in arrays and arrays[name].ndim != dimensions:
            raise DamageError(f"{where}: '{name}' has shape {arrays[name].shape}, {dimensions} dimensions expected")
    kept = {name: array for name, array in arrays.items() if array.size}
    parts = [kept.get(f"sample_{name}") for name in ("images", "labels", "predictions", "probabilities")]
    present = [part for part in parts if part is not None]
    if len({len(part) for part in present}) > 1:
        raise DamageError(f"{where}: the sample arrays differ in length: {[len(part) for part in present]}")
    return Artefacts(
        step=newest.step,
        task=newest.result.key.task,
        patch_filters=_finite(kept.get("patch_filters")),
        position_similarity=_finite(kept.get("position_similarity")),
        samples=Samples(*present) if len(present) == len(parts) else None,
        confusion=kept.get("confusion"),
    )


def _finite(array: Array | None) -> Array | None:
    return None if array is None else np.nan_to_num(np.asarray(array, np.float32), posinf=0.0, neginf=0.0)
