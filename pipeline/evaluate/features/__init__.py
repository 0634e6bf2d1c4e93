"""Features once per (weights, layer, pooling, transform, dtype, dataset), shared by every probe.

::

    spec.py      which features of a network, and the key that they are stored under
    forward.py   several of them in one forward pass
    parts.py     a part: a fixed range of samples as one file that says what it is of
    extract.py   missing parts are computed, images decoded ahead; the card comes last
    read.py      whole, or part by part
"""

from pipeline.evaluate.features.extract import (
    compute_parts,
    finish,
    has_features,
    iterate_features,
    load_features,
    missing_parts,
    prepare_features,
    single_thread,
)
from pipeline.evaluate.features.storage import HEAD_INPUT, Features, FeatureSpec, specs_for

__all__ = [
    "HEAD_INPUT",
    "FeatureSpec",
    "Features",
    "compute_parts",
    "finish",
    "has_features",
    "iterate_features",
    "load_features",
    "missing_parts",
    "prepare_features",
    "single_thread",
    "specs_for",
]
