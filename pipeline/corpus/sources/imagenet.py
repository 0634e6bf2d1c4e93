"""ImageNet's tar of tars: members ``n01440764.tar`` that hold the JPEGs of one class each.

Nothing is unpacked: entries point into the outer tar. The class is the inner tar's name; a class table may map such
synsets to names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.base.store.protocol import ObjectInfo
from pipeline.corpus.sources.location import IMAGE_SUFFIXES, SourceLocation, suffix_of, unreadable_error
from pipeline.corpus.sources.readers import FileReader
from pipeline.corpus.sources.source import LabelKind, ListingBuilder, ListingChunk, SourceKind
from pipeline.corpus.sources.tar import RangedBytes, TarDamage, TarMember, is_unsafe, scan_tar
from pipeline.corpus.sources.walk import is_hidden, is_unicode
from pipeline.records.corpus import ClassEntry


class ImagenetSource:
    """See the top of this file."""

    kind = "imagenet"
    random_access = True
    may_repeat = False
    label_kind: LabelKind = "names"
    declared_classes: Sequence[ClassEntry] = ()

    def __init__(self, location: SourceLocation) -> None:
        self._location = location
        self.reader = FileReader(location.store)

    def chunks(self) -> Iterator[ListingChunk]:
        """See Source."""
        builder = ListingBuilder()
        for info in self._location.objects("tar"):
            if not is_unicode(info.key):
                builder.reject(info.key, "name-not-unicode", "the name of an archive")
                continue
            try:
                yield from _list_outer(builder, info, RangedBytes(self._location.store, info))
            except OSError as error:
                raise unreadable_error(self._location, info, error) from None
        yield builder.take()


def _list_outer(builder: ListingBuilder, info: ObjectInfo, data: RangedBytes) -> Iterator[ListingChunk]:
    seen: set[str] = set()
    is_cut = False  # the inner tar that was listed last is cut
    for member in scan_tar(data, early=True):
        if isinstance(member, TarDamage):
            if not (is_cut and member.reason == "tar-cut"):  # one cut goes through both archives
                builder.reject(f"{info.key}@{member.offset}", member.reason, member.detail)
            continue
        name = member.name.removeprefix("./")
        if suffix_of(name) != "tar":
            continue
        is_cut = False
        if is_unsafe(name) or member.kind or not is_unicode(name):
            builder.reject(f"{info.key}/{name}", "member-refused", member.kind or "a name that cannot be used")
            continue
        for reason in _list_inner(builder, info, data, member, is_repeated=name in seen):
            is_cut = is_cut or reason == "tar-cut"
            if builder.is_full:
                yield builder.take()
        seen.add(name)


def _list_inner(
    builder: ListingBuilder, info: ObjectInfo, data: RangedBytes, outer: TarMember, *, is_repeated: bool
) -> Iterator[str]:
    """Add the images of one class to *builder*. Gives the reason of each reject, "" for each image that is fine."""
    archive = outer.name.removeprefix("./")
    origin = f"{info.key}/{archive}"
    synset = archive.rpartition("/")[2].removesuffix(".tar")
    seen: set[str] = set()
    for member in scan_tar(data, outer.offset, outer.offset + outer.num_bytes):
        reason, detail = "", ""
        if isinstance(member, TarDamage):
            builder.reject(f"{origin}@{member.offset - outer.offset}", member.reason, member.detail)
            yield member.reason
            continue
        name = member.name.removeprefix("./")
        if member.kind == "folder" or suffix_of(name) not in IMAGE_SUFFIXES - {""}:
            continue
        if is_hidden(name) and not is_unsafe(name):
            continue
        if is_unsafe(name) or member.kind:
            reason, detail = "member-refused", member.kind or "a name that points outside the archive"
        elif not is_unicode(name):
            reason = "name-not-unicode"
        elif is_repeated or name in seen:
            reason = "key-repeated"
        if reason:
            builder.reject(f"{origin}/{name}@{member.offset}", reason, detail)
        else:
            seen.add(name)
            builder.add(f"{origin}/{name}", info.key, [synset], member.num_bytes, info.etag, member.offset)
        yield reason


def _matches(location: SourceLocation) -> bool:
    """Whether the first member of the first tar is a tar itself; what is damaged before it is passed over."""
    if not location.count("tar"):
        return False
    info = next(location.objects("tar"), None)
    if info is None:
        return False
    try:
        members = scan_tar(RangedBytes(location.store, info), early=True)
        first = next((member for member in members if isinstance(member, TarMember) and member.kind != "folder"), None)
    except OSError:
        return False
    return first is not None and suffix_of(first.name) == "tar"


IMAGENET = SourceKind("imagenet", _matches, ImagenetSource, containers=("tar",))
