"""Quantities as people write and read them: bytes, seconds, counts."""

from __future__ import annotations

import re
from decimal import Decimal

_BYTE_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTE_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


def parse_bytes(text: str | int) -> int:
    """``"64 MB"``, ``"2GiB"`` or a plain number, in bytes. Raises ValueError for anything else."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2] not in _BYTE_UNITS:
        raise ValueError(f"{text!r} is not a size; write it like '64 MB' or '2 GiB'")
    return int(Decimal(match[1]) * _BYTE_UNITS[match[2]])


def format_bytes(num_bytes: int) -> str:
    """``12.3 MB``: decimal units, three digits."""
    value, unit = float(num_bytes), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:  # 999.6 would be shown as 1000
            break
        value, unit = value / 1000, bigger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"


def parse_seconds(text: str | float) -> float:
    """``"90"``, ``"30s"``, ``"10m"``, ``"2h"`` or ``"1d"``, in seconds. Raises ValueError for anything else."""
    if isinstance(text, int | float):
        return float(text)
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h|d|)\s*", text)
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is not a length of time; write it like '30s', '10m' or '2h'")
    return float(match[1]) * _SECONDS[match[2]]


def format_seconds(seconds: float) -> str:
    """``4.2 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
