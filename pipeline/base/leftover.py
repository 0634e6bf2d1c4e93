"""What can be removed from a store: an object that nothing names, and why nobody will miss it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Leftover:
    """An object that can go, and why."""

    key: str
    num_bytes: int
    why: str
