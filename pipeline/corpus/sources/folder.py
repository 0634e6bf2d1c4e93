"""Image folder: ``class/name.jpg`` at any depth. The class of an image is the path of the folder that it lies in.

Images at the top have no class. A folder without images is no class. Hidden files are left out, and so are those whose
suffix is not that of an image. Links: see walk.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.corpus.sources.location import IMAGE_SUFFIXES, SourceLocation
from pipeline.corpus.sources.readers import FileReader
from pipeline.corpus.sources.source import LabelKind, ListingBuilder, ListingChunk, SourceKind
from pipeline.corpus.sources.walk import is_unicode
from pipeline.records.corpus import ClassEntry, Reject


class FolderSource:
    """See the top of this file."""

    kind = "folder"
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
        for info in self._location.list(*IMAGE_SUFFIXES):
            if isinstance(info, Reject):
                builder.reject(info.origin, info.reason, info.detail)
            elif not is_unicode(info.key):
                builder.reject(info.key, "name-not-unicode")
            else:
                folder = info.key.rpartition("/")[0]
                builder.add(info.key, info.key, [folder] if folder else None, info.num_bytes, info.etag)
            if builder.is_full:
                yield builder.take()
        yield builder.take()


def _matches(location: SourceLocation) -> bool:
    return location.count(*IMAGE_SUFFIXES) > 0


FOLDER = SourceKind("folder", _matches, FolderSource)
