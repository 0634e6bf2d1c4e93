"""ImageNet's tar of tars: members ``n01440764.tar`` that hold the JPEGs of one class each.

Nothing is unpacked: entries point into the outer tar. The class is the inner tar's name; a class table may map such
synsets to names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.base.store.protocol import ObjectInfo
from pipeline.corpus.sources.location import SourceLocation, suffix_of, unreadable
from pipeline.corpus.sources.readers import FileReader
from pipeline.corpus.sources.source import IMAGE_SUFFIXES, LabelKind, ListingBuilder, ListingChunk, SourceKind, is_text
from pipeline.corpus.sources.tar import RangedBytes, TarDamage, TarMember, is_unsafe, scan
from pipeline.corpus.sources.walk import is_hidden
from pipeline.records.corpus import ClassEntry


class ImagenetSource:
    """See the top of this file."""

    kind = "imagenet"
    random_access = True
    may_repeat = False
    labels_are: LabelKind = "names"
    declared: Sequence[ClassEntry] = ()

    def __init__(self, place: SourceLocation) -> None:
        self._place = place
        self.reader = FileReader(place.store)

    def chunks(self) -> Iterator[ListingChunk]:
        """See Source."""
        collected = ListingBuilder()
        for info in self._place.objects("tar"):
            if not is_text(info.key):
                collected.reject(info.key, "name-not-unicode", "the name of an archive")
                continue
            try:
                yield from _outer(collected, info, RangedBytes(self._place.store, info))
            except OSError as error:
                raise unreadable(self._place, info, error) from None
        yield collected.take()


def _outer(collected: ListingBuilder, info: ObjectInfo, data: RangedBytes) -> Iterator[ListingChunk]:
    seen: set[str] = set()
    told_cut = False
    for member in scan(data, early=True):
        if isinstance(member, TarDamage):
            if not (told_cut and member.reason == "tar-cut"):  # one cut goes through both archives
                collected.reject(f"{info.key}@{member.offset}", member.reason, member.detail)
            continue
        name = member.name.removeprefix("./")
        if suffix_of(name) != "tar":
            continue
        told_cut = False
        if is_unsafe(name) or member.kind or not is_text(name):
            collected.reject(f"{info.key}/{name}", "member-refused", member.kind or "a name that cannot be used")
            continue
        for problem in _inner(collected, info, data, member, is_repeated=name in seen):
            told_cut = told_cut or problem == "tar-cut"
            if collected.is_full:
                yield collected.take()
        seen.add(name)


def _inner(
    collected: ListingBuilder, info: ObjectInfo, data: RangedBytes, outer: TarMember, *, is_repeated: bool
) -> Iterator[str]:
    """Collect the images of one class. Gives the reason of each reject, "" for what is fine."""
    archive = outer.name.removeprefix("./")
    where = f"{info.key}/{archive}"
    synset = archive.rpartition("/")[2].removesuffix(".tar")
    seen: set[str] = set()
    for member in scan(data, outer.offset, outer.offset + outer.num_bytes):
        reason, detail = "", ""
        if isinstance(member, TarDamage):
            collected.reject(f"{where}@{member.offset - outer.offset}", member.reason, member.detail)
            yield member.reason
            continue
        name = member.name.removeprefix("./")
        if member.kind == "folder" or suffix_of(name) not in IMAGE_SUFFIXES - {""}:
            continue
        if is_hidden(name) and not is_unsafe(name):
            continue
        if is_unsafe(name) or member.kind:
            reason, detail = "member-refused", member.kind or "a name that points outside the archive"
        elif not is_text(name):
            reason = "name-not-unicode"
        elif is_repeated or name in seen:
            reason = "key-repeated"
        if reason:
            collected.reject(f"{where}/{name}@{member.offset}", reason, detail)
        else:
            seen.add(name)
            collected.add(f"{where}/{name}", info.key, [synset], member.num_bytes, info.etag, member.offset)
        yield reason


def _matches(place: SourceLocation) -> bool:
    """Whether the first member of the first tar is a tar itself; what is damaged before it is passed by."""
    if not place.count("tar"):
        return False
    info = next(place.objects("tar"), None)
    if info is None:
        return False
    try:
        members = scan(RangedBytes(place.store, info), early=True)
        first = next((member for member in members if isinstance(member, TarMember) and member.kind != "folder"), None)
    except OSError:
        return False
    return first is not None and suffix_of(first.name) == "tar"


IMAGENET = SourceKind("imagenet", _matches, ImagenetSource)
