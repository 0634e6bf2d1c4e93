"""ModelRef: which weights are judged, and how their input is made; or raw pixels, the baseline that needs no network.

No torch here, for everything that only plans and reports. ``model_loader.py`` makes networks of ModelRefs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.images.transforms import EvaluationTransform
from pipeline.records.score import PIXELS

_DIGEST_DIGITS = 12  # of a digest, in the name of weights without a step
# Of a side: larger images are shrunk to it for the raw-pixel baseline. It is the side of CIFAR's images. 224 px would
# be 150,528 features, whose covariance alone takes 90 GB.
_MAX_PIXELS = 32


@dataclass(frozen=True)
class ModelRef:
    """Weights by digest and key in the workspace; for raw pixels the digest is PIXELS and the key empty.

    ``step`` is None for those, and for imported weights, which belong to no run.
    """

    weights_digest: str
    weights_key: str
    transform: dict[str, Any]
    step: int | None

    @property
    def is_pixels(self) -> bool:
        """True for the raw-pixel baseline."""
        return self.weights_digest == PIXELS

    @property
    def evaluation_transform(self) -> EvaluationTransform:
        """How its input is made."""
        return EvaluationTransform.model_validate(self.transform)

    @property
    def name(self) -> str:
        """For people."""
        if self.is_pixels:
            return "pixels"
        return f"weights {self.weights_digest[:_DIGEST_DIGITS]}" if self.step is None else f"step {self.step}"


def at_size(model_ref: ModelRef, size: int) -> ModelRef:
    """*model_ref* with input of *size* pixels (0: unchanged), cropped from images that are larger in proportion."""
    transform = model_ref.evaluation_transform
    if size in (0, transform.size):
        return model_ref
    resize = max(size, round(transform.resize * size / transform.size))
    changed = transform.model_copy(update={"size": size, "resize": resize})
    return replace(model_ref, transform=changed.model_dump(mode="json"))


def pixels_like(model_ref: ModelRef) -> ModelRef:
    """The raw-pixel baseline beside *model_ref*: its input, with at most 32 pixels of a side."""
    pixels = ModelRef(PIXELS, "", model_ref.transform, None)
    return at_size(pixels, min(_MAX_PIXELS, model_ref.evaluation_transform.size))
