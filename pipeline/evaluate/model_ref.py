"""What is judged: the weights of a checkpoint, imported weights, or raw pixels, which stand in for features as a
baseline. ``networks.py`` makes networks of them; here is no torch, for all who only plan and tell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.images.transforms import EvaluationTransform
from pipeline.records.score import PIXELS

_SHOWN = 12  # digits of a digest
# Of a side: raw pixels of more are shrunk to it, the side of CIFAR's images. 224 px would be 150,528 features, whose
# covariance alone takes 90 GB.
MOST_PIXELS = 32


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
        return f"weights {self.weights_digest[:_SHOWN]}" if self.step is None else f"step {self.step}"


def at_size(subject: ModelRef, size: int) -> ModelRef:
    """*subject*, fed with images of *size* pixels (0: as it is), cut out of proportionally larger ones."""
    transform = subject.evaluation_transform
    if size in (0, transform.size):
        return subject
    resize = max(size, round(transform.resize * size / transform.size))
    changed = transform.model_copy(update={"size": size, "resize": resize})
    return replace(subject, transform=changed.model_dump(mode="json"))


def pixels_like(subject: ModelRef) -> ModelRef:
    """The raw-pixel baseline beside *subject*: its input, at most MOST_PIXELS of a side."""
    pixels = ModelRef(PIXELS, "", subject.transform, None)
    return at_size(pixels, min(MOST_PIXELS, subject.evaluation_transform.size))
