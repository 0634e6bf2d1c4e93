"""Typed settings of a corpus: its sources, which duplicates are left out, how it is split."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.base.config import Config
from pipeline.corpus.sources import KINDS

AUTO = "auto"


def _check_kind(value: Any) -> str:
    """*value* if it is ``auto`` or a kind of the registry; pydantic words the error of a Literal like this one."""
    known = [repr(name) for name in (AUTO, *reversed(KINDS))]
    if not isinstance(value, str) or repr(value) not in known:
        raise ValueError(f"Input should be {', '.join(known[:-1])} or {known[-1]}")
    return value


Kind = Annotated[str, BeforeValidator(_check_kind)]


class SourceRecipe(Config):
    """One location with images."""

    source: str = Field(description="folder, file, or s3:// prefix or object; or embedded://NAME/SPLIT")
    kind: Kind = Field(AUTO, description="what is there; auto looks")
    name: str = Field("", description="leads the origins of this source when several are joined; default: its number")
    weight: float | None = Field(
        None, gt=0, description="share in the joined corpus, relative to the other weights; default: all of it"
    )


class DuplicatesRecipe(Config):
    """Which copies are left out. Of equal images the one with the smallest origin is kept."""

    within: Literal["none", "file", "pixels"] = Field("none", description="equal files, or equal decoded pixels")
    against: tuple[str, ...] = Field((), description="datasets of the workspace that must not be trained on")
    against_by: Literal["file", "pixels"] = Field("pixels", description="what is compared with those")


class SplitRecipe(Config):
    """Parts of one corpus. An image's part depends on its key alone, so it stays when others are added.

    ``stratified`` takes the exact share of each class instead, by the order of the keys' hashes: nearly as stable.
    """

    parts: dict[str, float] = Field({}, description="share of each part, like {train: 0.9, validation: 0.1}")
    stratified: bool = False

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.parts and (min(self.parts.values()) <= 0 or abs(sum(self.parts.values()) - 1) > 1e-9):
            raise ValueError("the shares of parts must be positive and add up to 1")
        return self
