"""Which features of a network, and the key that they are stored under."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.base.digests import fingerprint
from pipeline.evaluate.subject import Subject
from pipeline.evaluate.suite import FeatureDtype, Layer, Pooling

_SCHEMA_VERSION = 2


@dataclass(frozen=True)
class FeatureSpec:
    """Features of one layer.

    *layer*: ``head-input`` is what the head sees (with the pre-logits layer, where there is one); ``last`` is after the
    last norm; numbers are blocks, 1 the first and -1 the last, through the last norm as DINOv2 does (so that -1 is
    ``last``). *pooling*: the class token, the average of the patches, both side by side, or as the model does it.
    *dtype*: ``bfloat16`` is autocast; what is stored is float32.
    """

    layer: Layer = "head-input"
    pooling: Pooling = "model"
    dtype: FeatureDtype = "float32"

    def made_of(self, subject: Subject, dataset_digest: str) -> dict[str, Any]:
        """All that the features depend on."""
        return {
            "schema": _SCHEMA_VERSION,
            "weights": subject.weights_digest,
            "layer": "last" if self.layer == -1 else self.layer,
            "pooling": self.pooling,
            "transform": subject.transform,
            "dtype": self.dtype,
            "dataset": dataset_digest,
        }

    def prefix(self, subject: Subject, dataset_digest: str) -> str:
        """Where they are stored."""
        return f"features/{fingerprint(self.made_of(subject, dataset_digest))}"


HEAD_INPUT = FeatureSpec()


def specs_for(
    subject: Subject, layers: Iterable[Layer], pooling: Pooling, dtype: FeatureDtype = "float32"
) -> tuple[FeatureSpec, ...]:
    """One for each of *layers*, each once. Raw pixels have one layer, themselves; ``head-input`` is pooled already."""
    if subject.is_pixels:
        return (HEAD_INPUT,)
    specs = (FeatureSpec(layer, "model" if layer == "head-input" else pooling, dtype) for layer in layers)
    return tuple(dict.fromkeys(specs))
