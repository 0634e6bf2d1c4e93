"""Typed settings of a stage: which objects are copied, how fast, and how long errors are waited for."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

from pipeline.base.config import Config
from pipeline.base.units import parse_bytes

Bytes = Annotated[int, BeforeValidator(parse_bytes)]


class StageRecipe(Config):
    """Only ``include`` and ``exclude`` say what is copied; the others may change between two attempts."""

    include: tuple[str, ...] = Field(
        (), description="patterns of keys below the source: * and ? stay within a folder, ** does not; none: all"
    )
    exclude: tuple[str, ...] = Field((), description="patterns of keys to leave out; they win over include")
    parallel: int = Field(8, ge=1, le=256, description="requests at once")
    part_bytes: Bytes = Field(16_000_000, ge=5 << 20, le=1 << 30, description="bigger objects travel in such parts")
    low_speed_bytes: int = Field(1000, ge=0, description="bytes a second; a slower answer is broken off and repeated")
    low_speed_seconds: float = Field(20.0, gt=0, description="how long an answer may be slower, or stand still")
    patience_seconds: float = Field(300.0, ge=0, description="how long a request that fails is repeated")
    compare_sums: bool = Field(True, description="compare with checksums and MD5 ETags that the source's store tells")
    tolerated_rejects: int = Field(0, ge=0, description="more objects than this that cannot be copied fail the stage")

    def key_filter(self) -> KeyFilter:
        """Which keys are copied."""
        return KeyFilter(self.include, self.exclude)


class KeyFilter:
    """Which keys the patterns of include and exclude take."""

    def __init__(self, include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
        self._include = [_compile(pattern) for pattern in include]
        self._exclude = [_compile(pattern) for pattern in exclude]

    def __call__(self, key: str) -> bool:
        """True when the object at *key* is copied."""
        is_included = not self._include or any(pattern.fullmatch(key) for pattern in self._include)
        return is_included and not any(pattern.fullmatch(key) for pattern in self._exclude)


def _compile(pattern: str) -> re.Pattern[str]:
    """``*`` and ``?`` within one part of a key, ``**`` over any; without a slash the last part is compared."""
    text = pattern if "/" in pattern else f"**/{pattern}"
    regex = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|[^*?]+", text.lstrip("/")):
        wildcards = {"**/": r"(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        regex.append(wildcards.get(token) or re.escape(token))
    return re.compile("".join(regex), re.DOTALL)
