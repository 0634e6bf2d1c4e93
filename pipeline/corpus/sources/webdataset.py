"""WebDataset tars, to be sharded again: ``KEY.jpg`` with ``KEY.cls`` or ``KEY.json``; the archives plain or gzipped.

The label is the text of ``.cls``, or the value of ``labels``, ``label`` or ``class`` in ``.json``. Other fields
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
from pipeline.corpus.sources.location import IMAGE_SUFFIXES, SourceLocation, suffix_of, unreadable_error
from pipeline.corpus.sources.source import (
    DamagedLabelError,
    LabelKind,
    ListingBuilder,
    ListingChunk,
    SourceKind,
    parse_json,
    parse_labels,
)
from pipeline.corpus.sources.tar import (
    ArchiveBytes,
    InflatedBytes,
    RangedBytes,
    TarDamage,
    TarMember,
    TarReader,
    is_unsafe,
    scan_tar,
)
from pipeline.corpus.sources.walk import is_hidden, is_unicode
from pipeline.records.corpus import ClassEntry

_GZIPPED = ("tgz", "tar.gz")
_SUFFIXES = ("tar", *_GZIPPED)
_CARD = "dataset.json"
_MEMBER_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # key and field, as webdataset splits them
_FIRST_IMAGES = ["jpg", "jpeg", "png", "webp"]  # of several images in a sample the first of these is meant
_IMAGES = [*_FIRST_IMAGES, *sorted(IMAGE_SUFFIXES - {"", *_FIRST_IMAGES})]
_LABEL_FIELDS = ("cls", "json")
_LABEL_ENDINGS = tuple(f".{ending}" for name in _LABEL_FIELDS for ending in (name, name.upper()))
_JSON_LABELS = ("labels", "label", "class")


class WebdatasetSource:
    """See the top of this file."""

    kind = "webdataset"
    may_repeat = False

    def __init__(self, location: SourceLocation) -> None:
        self._location = location
        self.reader = TarReader(location.store)
        self.random_access = not location.count(*_GZIPPED)
        self.declared_classes: Sequence[ClassEntry] = _declared_classes(location)

    @property
    def label_kind(self) -> LabelKind:
        """See Source."""
        return "numbers" if self.declared_classes else "either"

    def chunks(self) -> Iterator[ListingChunk]:
        """See Source."""
        builder = ListingBuilder()
        last: tuple[_Archive, TarSample] | None = None  # not added yet: the next archive may begin with its rest
        for archive, sample in self._samples():
            is_rest = last is not None and _is_rest(*last, archive, sample)
            if last is not None:
                _add(builder, *last, is_split=is_rest)
                last = None
            if isinstance(sample, TarDamage):
                builder.reject(f"{archive.info.key}@{sample.offset}", sample.reason, sample.detail)
            elif sample.key in archive.seen:
                builder.reject(f"{archive.info.key}/{sample.key}@{sample.offset}", "key-repeated")
            elif not is_rest:
                archive.seen.add(sample.key)
                last = archive, sample
            if builder.is_full:
                yield builder.take()
        if last is not None:
            _add(builder, *last)
        yield builder.take()

    def _samples(self) -> Iterator[tuple[_Archive, TarSample | TarDamage]]:
        for info in self._location.objects(*_SUFFIXES):
            archive = _open(self._location, info)
            is_damaged = False
            try:
                if not is_unicode(info.key):
                    yield archive, TarDamage(0, "name-not-unicode", "the name of an archive")
                    continue
                for sample in _group_samples(scan_tar(archive.data, data_of=_LABEL_ENDINGS)):
                    is_damaged = is_damaged or isinstance(sample, TarDamage)
                    yield archive, _blame_gzip(sample, archive.data)
            except OSError as error:
                raise unreadable_error(self._location, info, error) from None
            if isinstance(archive.data, InflatedBytes):
                self.random_access = False
                archive.data.close()
                if archive.data.damage and not is_damaged and archive.data.damage != InflatedBytes.CUT:
                    yield archive, TarDamage(0, "tar-damaged", archive.data.damage)


@dataclass
class _Archive:
    info: ObjectInfo
    data: ArchiveBytes
    seen: set[str] = field(default_factory=set)  # keys of its samples

    @property
    def folder(self) -> str:
        return self.info.key.rpartition("/")[0]


def _open(location: SourceLocation, info: ObjectInfo) -> _Archive:
    is_plain = suffix_of(info.key) not in _GZIPPED
    return _Archive(info, RangedBytes(location.store, info) if is_plain else InflatedBytes(location.store, info))


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
        """Name and member of the field with the label."""
        return next(((name, self.fields[name]) for name in _LABEL_FIELDS if name in self.fields), None)

    @property
    def offset(self) -> int:
        """The offset of its first data."""
        return min((member.offset for member in self.fields.values()), default=0)


def _group_samples(members: Iterable[TarMember | TarDamage]) -> Iterator[TarSample | TarDamage]:
    """The samples of one archive, each when it is complete. A TarDamage takes the place of the sample that it cost.

    The sample before damage counts as complete when it has the fields of the sample before it.
    """
    current: TarSample | None = None
    usual: set[str] | None = None  # fields of the sample before
    is_behind_damage = False
    for member in members:
        if isinstance(member, TarDamage):
            if current is not None and usual is not None and usual <= current.fields.keys():
                yield current
            yield member
            current, is_behind_damage = None, True
            continue
        key, name = _split_name(member.name)
        if member.kind == "folder" or not name:
            continue
        if current is not None and (current.key != key or name in current.fields):
            if not is_behind_damage or current.images:  # without an image: the rest of the sample that it cost
                yield current
                usual = set(current.fields)
            current, is_behind_damage = None, False
        if current is None:
            current = TarSample(key)
        current.fields[name] = member
        current.refused = current.refused or _refusal(member, name)
    if current is not None and (not is_behind_damage or current.images):
        yield current


def _split_name(name: str) -> tuple[str, str]:
    """Key and field of a member's name; no field where webdataset sees none, and where the name is hidden."""
    plain = name.removeprefix("./")
    match = _MEMBER_NAME.fullmatch(plain)
    if match is None or (is_hidden(plain) and not is_unsafe(plain)):
        return name, ""
    return match[1], match[2].lower()


def _refusal(member: TarMember, name: str) -> str:
    """Why a member makes its sample unusable: it points elsewhere, or is a link where an image or label must be."""
    if is_unsafe(member.name):
        return "a name that points outside the archive"
    if member.kind and (name.rpartition(".")[2] in _IMAGES or name in _LABEL_FIELDS):
        return member.kind
    return ""


def _blame_gzip(sample: TarSample | TarDamage, data: ArchiveBytes) -> TarSample | TarDamage:
    """*sample*; where an archive ends too early because its compression is damaged, the damage says that."""
    if isinstance(sample, TarDamage) and isinstance(data, InflatedBytes) and data.damage not in ("", InflatedBytes.CUT):
        return TarDamage(sample.offset, "tar-damaged", data.damage)
    return sample


def _is_rest(archive: _Archive, last: TarSample, following: _Archive, sample: TarSample | TarDamage) -> bool:
    """Whether *sample* at the start of the *following* archive is the rest of *last*: one of them has the image."""
    return (
        following is not archive
        and following.folder == archive.folder
        and isinstance(sample, TarSample)
        and sample.key == last.key
        and bool(sample.images) != bool(last.images)
    )


def _add(builder: ListingBuilder, archive: _Archive, sample: TarSample, *, is_split: bool = False) -> None:
    key = archive.info.key
    origin = f"{key}/{sample.key}"
    images = sample.images
    if is_split:
        builder.reject(origin, "sample-split", "the other part is in the next archive")
    elif not is_unicode(sample.key):
        builder.reject(origin, "name-not-unicode")
    elif sample.refused:
        builder.reject(origin, "member-refused", sample.refused)
    elif not images:
        builder.reject(origin, "image-missing", f"fields: {', '.join(sample.fields)}")
    elif len(images) > 1:
        builder.reject(origin, "image-ambiguous", f"fields: {', '.join(sample.fields)}")
    elif not is_unicode(images[0].name):
        builder.reject(origin, "name-not-unicode")
    else:
        try:
            labels = _labels(sample)
        except DamagedLabelError as error:
            builder.reject(origin, "label-damaged", str(error))
            return
        image = images[0]
        name = f"{key}/{image.name.removeprefix('./')}"
        builder.add(name, key, labels, image.num_bytes, archive.info.etag, image.offset)


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
        return parse_labels(text)
    fields: Any = parse_json(text)
    if not isinstance(fields, dict):
        return parse_labels(fields)
    return parse_labels(next((fields[key] for key in _JSON_LABELS if key in fields), None))


def _declared_classes(location: SourceLocation) -> list[ClassEntry]:
    """The classes of the dataset card beside the tars, if there is one. Raises InputError when it is damaged."""
    store, uri = location.store, f"{location.folder}/{_CARD}"
    if store.head(_CARD) is None:
        return []
    try:
        card = parse_json(store.read(_CARD))
        return [
            ClassEntry.model_validate(entry if isinstance(entry, dict) else {"name": entry})
            for entry in card.get("class_table") or card["class_names"]
        ]
    except (DamagedLabelError, ValidationError, LookupError, AttributeError, TypeError):
        raise InputError(f"{uri} is no dataset card", "mend it, or take it away to do without class names") from None


def _matches(location: SourceLocation) -> bool:
    return location.count(*_SUFFIXES) > 0


WEBDATASET = SourceKind("webdataset", _matches, WebdatasetSource, containers=_SUFFIXES)
