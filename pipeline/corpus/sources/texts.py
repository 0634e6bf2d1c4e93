"""Labels as found in JSON, YAML or cells -> the texts of FOUND_SCHEMA."""

from __future__ import annotations

import json
from typing import Any


class DamagedLabelError(ValueError):
    """What stands where a label must stand cannot be one."""


def texts_of(value: Any) -> list[str | None] | None:
    """The texts of *value*: a name, a number, or a list of them. None says nothing; so does one inside a list.

    Raises DamagedLabelError for whatever else it is.
    """
    if value is None:
        return None
    if isinstance(value, list):
        return [_text(item) for item in value]
    text = _text(value)
    return None if text is None else [text]


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int | float):
        return _number(value)
    raise DamagedLabelError(f"a label cannot be of type {type(value).__name__}")


def _number(value: float) -> str:
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"{'-' if value < 0 else ''}1e18"  # far out of any range, whatever it is
    return repr(value)


def parse_json(text: str | bytes) -> Any:
    """The JSON in *text*. Raises DamagedLabelError when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedLabelError("not JSON") from None


def texts_in_cell(cell: str) -> list[str | None] | None:
    """The texts of a cell of a table: a JSON list, or texts between ``|``; nothing is said by an empty one."""
    cell = cell.strip()
    if cell.startswith("["):
        return texts_of(parse_json(cell))
    return [part.strip() or None for part in cell.split("|")] if cell else None
