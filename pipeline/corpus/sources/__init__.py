"""One file per kind of source. The order here is that in which a place is looked at: the first that knows it has it.

README.md says how to add one.
"""

from pipeline.corpus.sources.folder import FOLDER
from pipeline.corpus.sources.imagenet import IMAGENET
from pipeline.corpus.sources.manifest import MANIFEST
from pipeline.corpus.sources.parquet import PARQUET
from pipeline.corpus.sources.source import SourceKind
from pipeline.corpus.sources.webdataset import WEBDATASET

__all__ = ["FOLDER", "IMAGENET", "MANIFEST", "PARQUET", "WEBDATASET", "SourceKind"]
KINDS: tuple[SourceKind, ...] = (MANIFEST, IMAGENET, WEBDATASET, PARQUET, FOLDER)
