"""WebDataset tars, to be sharded again: ``KEY.jpg`` with ``KEY.cls`` or ``KEY.json``; plain, or gzipped as a whole.

The label is the text of ``.cls``, or of ``.json`` what stands under ``labels``, ``label`` or ``class``. Other fields
are not read; nothing is ever unpickled. Class names come from a ``dataset.json`` beside the tars, as vitpipe's own
shards have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from pipeline.base.errors import InputError
from pipeline.base.store.protocol import ObjectInfo
from pipeline.corpus.sources.location import SourceLocation, suffix_of, unreadable
from pipeline.corpus.sources.source import (
    IMAGE_SUFFIXES,
    DamagedLabelError,
    LabelKind,
    ListingBuilder,
    ListingChunk,
    SourceKind,
    is_text,
    parse_json,
    texts_of,
)
from pipeline.corpus.sources.tar import (
    ArchiveBytes,
    InflatedBytes,
    RangedBytes,
    TarDamage,
    TarMember,
    TarReader,
    is_unsafe,
    scan,
)
from pipeline.corpus.sources.walk import is_hidden
from pipeline.records.corpus import ClassEntry

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_FIRST = ["jpg", "jpeg", "png", "webp"]  # of several images in a sample the first of these is meant
_IMAGES = [*_FIRST, *sorted(IMAGE_SUFFIXES - {"", *_FIRST})]
LABEL_FIELDS = ("cls", "json")
LABEL_ENDINGS = tuple(f".{ending}" for name in LABEL_FIELDS for ending in (name, name.upper()))


@dataclass
class TarSample:
    """Members of one key. ``refused`` says why none of them may be used."""

    key: str
    fields: dict[str, TarMember] = field(default_factory=dict)
    refused: str = ""

    @property
    def images(self) -> list[TarMember]:
        """The image: of the fields named like one (``jpg`` before ``png``), else of those that end like one."""
        plain = [self.fields[name] for name in _IMAGES if name in self.fields]
        ending = [member for name, member in self.fields.items() if name.rpartition(".")[2] in _IMAGES]
        return plain[:1] or ending

    @property
    def label(self) -> tuple[str, TarMember] | None:
        """The field that says the label, with its name."""
        return next(((name, self.fields[name]) for name in LABEL_FIELDS if name in self.fields), None)

    @property
    def offset(self) -> int:
        """Where its first data stands."""
        return min((member.offset for member in self.fields.values()), default=0)


def samples(members: Iterable[TarMember | TarDamage]) -> Iterator[TarSample | TarDamage]:
    """The samples of one archive, each when it is complete. A Break stands for the sample that it cost.

    The sample before a break counts as complete when it has the fields of the sample before it.
    """
    current: TarSample | None = None
    usual: set[str] | None = None
    broken = False
    for member in members:
        if isinstance(member, TarDamage):
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
            current = TarSample(key)
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


def _refusal(member: TarMember, name: str) -> str:
    """Why a member makes its sample unusable: it points elsewhere, or is a link where an image or label must stand."""
    if is_unsafe(member.name):
        return "a name that points outside the archive"
    if member.kind and (name.rpartition(".")[2] in _IMAGES or name in LABEL_FIELDS):
        return member.kind
    return ""


_GZIPPED = ("tgz", "tar.gz")
_SUFFIXES = ("tar", *_GZIPPED)
_CARD = "dataset.json"
_IN_JSON = ("labels", "label", "class")


@dataclass
class _Archive:
    info: ObjectInfo
    data: ArchiveBytes
    seen: set[str] = field(default_factory=set)

    @property
    def folder(self) -> str:
        return self.info.key.rpartition("/")[0]


class WebdatasetSource:
    """See the top of this file."""

    kind = "webdataset"
    may_repeat = False

    def __init__(self, place: SourceLocation) -> None:
        self._place = place
        self.reader = TarReader(place.store)
        self.random_access = not place.count(*_GZIPPED)
        self.declared: Sequence[ClassEntry] = _declared(place)

    @property
    def labels_are(self) -> LabelKind:
        """See Source."""
        return "numbers" if self.declared else "either"

    def chunks(self) -> Iterator[ListingChunk]:
        """See Source."""
        collected = ListingBuilder()
        held: tuple[_Archive, TarSample] | None = None  # the next archive may begin with the rest of it
        for archive, sample in self._samples():
            is_rest = held is not None and _is_rest(*held, archive, sample)
            if held is not None:
                _add(collected, *held, is_split=is_rest)
                held = None
            if isinstance(sample, TarDamage):
                collected.reject(f"{archive.info.key}@{sample.offset}", sample.reason, sample.detail)
            elif sample.key in archive.seen:
                collected.reject(f"{archive.info.key}/{sample.key}@{sample.offset}", "key-repeated")
            elif not is_rest:
                archive.seen.add(sample.key)
                held = archive, sample
            if collected.is_full:
                yield collected.take()
        if held is not None:
            _add(collected, *held)
        yield collected.take()

    def _samples(self) -> Iterator[tuple[_Archive, TarSample | TarDamage]]:
        for info in self._place.objects(*_SUFFIXES):
            archive = _open(self._place, info)
            broken = False
            try:
                if not is_text(info.key):
                    yield archive, TarDamage(0, "name-not-unicode", "the name of an archive")
                    continue
                for sample in samples(scan(archive.data, keep=LABEL_ENDINGS)):
                    broken = broken or isinstance(sample, TarDamage)
                    yield archive, _by_gzip(sample, archive.data)
            except OSError as error:
                raise unreadable(self._place, info, error) from None
            if isinstance(archive.data, InflatedBytes):
                self.random_access = False
                archive.data.close()
                if archive.data.damage and not broken and archive.data.damage != InflatedBytes.CUT:
                    yield archive, TarDamage(0, "tar-damaged", archive.data.damage)


def _by_gzip(sample: TarSample | TarDamage, data: ArchiveBytes) -> TarSample | TarDamage:
    """*sample*; where an archive ends too early because its compression is damaged, that is told."""
    if isinstance(sample, TarDamage) and isinstance(data, InflatedBytes) and data.damage not in ("", InflatedBytes.CUT):
        return TarDamage(sample.offset, "tar-damaged", data.damage)
    return sample


def _open(place: SourceLocation, info: ObjectInfo) -> _Archive:
    plain = suffix_of(info.key) not in _GZIPPED
    return _Archive(info, RangedBytes(place.store, info) if plain else InflatedBytes(place.store, info))


def _is_rest(archive: _Archive, last: TarSample, following: _Archive, sample: TarSample | TarDamage) -> bool:
    """Whether *sample* at the start of the *following* archive is the rest of *last*: one of them has the image."""
    return (
        following is not archive
        and following.folder == archive.folder
        and isinstance(sample, TarSample)
        and sample.key == last.key
        and bool(sample.images) != bool(last.images)
    )


def _add(collected: ListingBuilder, archive: _Archive, sample: TarSample, *, is_split: bool = False) -> None:
    key = archive.info.key
    origin = f"{key}/{sample.key}"
    images = sample.images
    if is_split:
        collected.reject(origin, "sample-split", "the other part is in the next archive")
    elif not is_text(sample.key):
        collected.reject(origin, "name-not-unicode")
    elif sample.refused:
        collected.reject(origin, "member-refused", sample.refused)
    elif not images:
        collected.reject(origin, "image-missing", f"fields: {', '.join(sample.fields)}")
    elif len(images) > 1:
        collected.reject(origin, "image-ambiguous", f"fields: {', '.join(sample.fields)}")
    elif not is_text(images[0].name):
        collected.reject(origin, "name-not-unicode")
    else:
        try:
            labels = _labels(sample)
        except DamagedLabelError as error:
            collected.reject(origin, "label-damaged", str(error))
            return
        image = images[0]
        name = f"{key}/{image.name.removeprefix('./')}"
        collected.add(name, key, labels, image.num_bytes, archive.info.etag, image.offset)


def _labels(sample: TarSample) -> list[str | None] | None:
    if sample.label is None:
        return None
    name, member = sample.label
    if member.data is None and member.num_bytes:
        raise DamagedLabelError(f"{member.num_bytes} bytes are no label")
    try:
        text = (member.data or b"").decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise DamagedLabelError("not UTF-8") from None
    if name == "cls":
        return texts_of(text)
    fields: Any = parse_json(text)
    if not isinstance(fields, dict):
        return texts_of(fields)
    return texts_of(next((fields[key] for key in _IN_JSON if key in fields), None))


def _declared(place: SourceLocation) -> list[ClassEntry]:
    """The classes of the dataset card beside the tars, if there is one. Raises InputError when it is damaged."""
    store, where = place.store, f"{place.folder}/{_CARD}"
    if store.head(_CARD) is None:
        return []
    try:
        card = parse_json(store.read(_CARD))
        return [
            ClassEntry.model_validate(entry if isinstance(entry, dict) else {"name": entry})
            for entry in card.get("class_table") or card["class_names"]
        ]
    except (DamagedLabelError, ValidationError, LookupError, AttributeError, TypeError):
        raise InputError(f"{where} is no dataset card", "mend it, or take it away to do without class names") from None


def _matches(place: SourceLocation) -> bool:
    return place.count(*_SUFFIXES) > 0


WEBDATASET = SourceKind("webdataset", _matches, WebdatasetSource)
