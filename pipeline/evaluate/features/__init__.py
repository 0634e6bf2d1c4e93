"""Features once per (weights, layer, pooling, transform, dtype, dataset), shared by every probe.

::

    storage.py   which features of a network, the key they are stored under; parts, each one file, and the card
    extract.py   missing parts are computed, several specs in one forward pass; loaded, or read part by part
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
