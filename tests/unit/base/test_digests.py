"""Equal content has equal names; what differs is named."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.digests import canonical_json, differing_fields, fingerprint, sha256_hex

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_sha256_is_sha256() -> None:
    assert sha256_hex(b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_hex(memoryview(b"abc")) == sha256_hex(b"abc")


def test_canonical_json_has_one_text() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é\u2028"}) == '{"a":"\\u00e9\\u2028","b":[1,2.5,null]}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_canonical_json_has_no_nan(value: Any) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(value)


def test_golden_fingerprint() -> None:
    value = {"name": "vit", "depth": 12, "rate": 1e-3, "heads": [1, 2], "none": None}
    assert fingerprint(value) == "40d3d83db730148034b52b8037ca5d8b36ee5c75e310171f4892d141133dc2cf"


@given(JSON, JSON)
def test_fields_differ_exactly_when_fingerprints_do(ours: Any, theirs: Any) -> None:
    assert bool(differing_fields(ours, theirs)) == (fingerprint(ours) != fingerprint(theirs))


def test_differing_fields_name_the_leaves() -> None:
    theirs = {"same": 1, "a": {"b": 1, "c": [1, 2]}, "gone": 3}
    ours = {"same": 1, "a": {"b": 2, "c": [1, 3]}, "new": None}
    assert differing_fields(ours, theirs) == [
        "a.b: 1 -> 2",
        "a.c: [1, 2] -> [1, 3]",
        "gone: 3 -> (absent)",
        "new: (absent) -> null",
    ]
