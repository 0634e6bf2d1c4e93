"""Digests and canonical JSON: the only way in which content becomes a name. sha256 throughout."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_ABSENT = object()


def sha256_hex(data: bytes | memoryview) -> str:
    """Hex sha256 of *data*."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN, so that equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Hex sha256 of the canonical JSON of *value*."""
    return sha256_hex(canonical_json(value).encode())


def differing_fields(new: Any, existing: Any, prefix: str = "") -> list[str]:
    """Name every leaf at which two JSON-like values differ, as ``a.b: existing -> new``."""
    if isinstance(new, dict) and isinstance(existing, dict):
        rows: list[str] = []
        for name in sorted(set(new) | set(existing)):
            rows += differing_fields(new.get(name, _ABSENT), existing.get(name, _ABSENT), f"{prefix}{name}.")
        return rows
    before, after = _shown(existing), _shown(new)  # compared as text: 1, 1.0 and true have different fingerprints
    return [] if before == after else [f"{prefix.rstrip('.')}: {before} -> {after}"]


def _shown(value: Any) -> str:
    return "(absent)" if value is _ABSENT else json.dumps(value, sort_keys=True, default=str)
