"""Quantities as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.units import format_bytes, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (17, 17),
        ("17", 17),
        ("17 B", 17),
        ("64 MB", 64_000_000),
        ("64MiB", 64 << 20),
        (" 2 GiB ", 2 << 30),
        ("1.5 kB", 1500),
        ("1.001 kB", 1001),
        ("0.1 TB", 100_000_000_000),
    ],
)
def test_sizes_are_read(text: str | int, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-1 MB", "1 mb", "1e3", "1,5 MB", "1 MB 2", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it like '64 MB'"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (12_345_678, "12.3 MB"),
        (999_499, "999 kB"),
        (999_999, "1 MB"),
        (999_999_999, "1 GB"),
        (5_000_000_000_000_000, "5000 TB"),
    ],
)
def test_sizes_are_shown(num_bytes: int, expected: str) -> None:
    assert format_bytes(num_bytes) == expected


@given(st.integers(0, 10**18))
def test_a_shown_size_reads_back_within_its_digits(num_bytes: int) -> None:
    assert abs(parse_bytes(format_bytes(num_bytes)) - num_bytes) <= 0.006 * num_bytes


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0.0 s"),
        (4.24, "4.2 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_times_are_shown(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected
