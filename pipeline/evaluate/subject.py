"""What is judged: the weights of a checkpoint, imported weights, or raw pixels, which stand in for features as a
baseline. ``networks.py`` makes networks of them; here is no torch, for all who only plan and tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.images.transform import EvaluationTransform
from pipeline.records.score import PIXELS

_SHOWN = 12  # digits of a digest


@dataclass(frozen=True)
class Subject:
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
