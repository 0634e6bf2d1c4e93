"""Members of a tar -> samples, as webdataset groups them: members that stand together and share a key.

The key is the name up to the first dot behind the last slash; what follows that dot names the field.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.corpus.sources.source import IMAGE_SUFFIXES
from pipeline.corpus.sources.tar_scan import Break, Member
from pipeline.corpus.sources.walk import is_hidden

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_FIRST = ["jpg", "jpeg", "png", "webp"]  # of several images in a sample the first of these is meant
_IMAGES = [*_FIRST, *sorted(IMAGE_SUFFIXES - {"", *_FIRST})]
LABEL_FIELDS = ("cls", "json")
LABEL_ENDINGS = tuple(f".{ending}" for name in LABEL_FIELDS for ending in (name, name.upper()))


@dataclass
class Sample:
    """Members of one key. ``refused`` says why none of them may be used."""

    key: str
    fields: dict[str, Member] = field(default_factory=dict)
    refused: str = ""

    @property
    def images(self) -> list[Member]:
        """The image: of the fields named like one (``jpg`` before ``png``), else of those that end like one."""
        plain = [self.fields[name] for name in _IMAGES if name in self.fields]
        ending = [member for name, member in self.fields.items() if name.rpartition(".")[2] in _IMAGES]
        return plain[:1] or ending

    @property
    def label(self) -> tuple[str, Member] | None:
        """The field that says the label, with its name."""
        return next(((name, self.fields[name]) for name in LABEL_FIELDS if name in self.fields), None)

    @property
    def offset(self) -> int:
        """Where its first data stands."""
        return min((member.offset for member in self.fields.values()), default=0)


def samples(members: Iterable[Member | Break]) -> Iterator[Sample | Break]:
    """The samples of one archive, each when it is complete. A Break stands for the sample that it cost.

    The sample before a break counts as complete when it has the fields of the sample before it.
    """
    current: Sample | None = None
    usual: set[str] | None = None
    broken = False
    for member in members:
        if isinstance(member, Break):
            if current is not None and usual is not None and usual <= current.fields.keys():
                yield current
            yield member
            current, broken = None, True
            continue
        key, name = _split(member.name)
        if member.kind == "folder" or not name:
            continue
        if current is not None and (current.key != key or name in current.fields):
            if not broken or current.images:  # behind a break: the rest of the sample that it cost
                yield current
                usual = set(current.fields)
            current, broken = None, False
        if current is None:
            current = Sample(key)
        current.fields[name] = member
        current.refused = current.refused or _refusal(member, name)
    if current is not None and (not broken or current.images):
        yield current


def _split(name: str) -> tuple[str, str]:
    """Key and field of a member's name; no field where webdataset sees none, and where the name is hidden."""
    plain = name.removeprefix("./")
    match = _NAME.fullmatch(plain)
    if match is None or (is_hidden(plain) and not is_unsafe(plain)):
        return name, ""
    return match[1], match[2].lower()


def _refusal(member: Member, name: str) -> str:
    """Why a member makes its sample unusable: it points elsewhere, or is a link where an image or label must stand."""
    if is_unsafe(member.name):
        return "a name that points outside the archive"
    if member.kind and (name.rpartition(".")[2] in _IMAGES or name in LABEL_FIELDS):
        return member.kind
    return ""


def is_unsafe(name: str) -> bool:
    """Whether a member's *name* leads out of the archive."""
    return posixpath.isabs(name) or ".." in name.split("/") or "\0" in name
