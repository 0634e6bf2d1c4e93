"""Image folder: ``class/name.jpg`` at any depth. The class of an image is the path of the folder that it lies in.

Images at the top have no class. A folder without images is no class. Hidden files are not looked at; nor are those
whose suffix is not that of an image. Links: see walk.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.corpus.sources.location import SourceLocation
from pipeline.corpus.sources.readers import FileReader
from pipeline.corpus.sources.source import IMAGE_SUFFIXES, LabelKind, ListingBuilder, ListingChunk, SourceKind, is_text
from pipeline.records.corpus import ClassEntry, Reject


class FolderSource:
    """See the top of this file."""

    kind = "folder"
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
        for info in self._place.found(*IMAGE_SUFFIXES):
            if isinstance(info, Reject):
                collected.reject(info.origin, info.reason, info.detail)
            elif not is_text(info.key):
                collected.reject(info.key, "name-not-unicode")
            else:
                folder = info.key.rpartition("/")[0]
                collected.add(info.key, info.key, [folder] if folder else None, info.num_bytes, info.etag)
            if collected.is_full:
                yield collected.take()
        yield collected.take()


def _matches(place: SourceLocation) -> bool:
    return place.count(*IMAGE_SUFFIXES) > 0


FOLDER = SourceKind("folder", _matches, FolderSource)
