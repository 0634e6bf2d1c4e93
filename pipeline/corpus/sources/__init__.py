"""The registry of sources, and one file per kind of source. README.md says how to add one.

source.py      what a source is; ListingBuilder, texts of labels
location.py    what a URI holds at first sight
walk.py        files below a local folder
readers.py     bytes of listed entries: whole objects, ranges, windows
tar.py         members of untrusted tars
folder.py, parquet.py, webdataset.py, imagenet.py, manifest.py    the kinds
"""

from pipeline.corpus.sources.folder import FOLDER
from pipeline.corpus.sources.imagenet import IMAGENET
from pipeline.corpus.sources.manifest import MANIFEST
from pipeline.corpus.sources.parquet import PARQUET
from pipeline.corpus.sources.source import SourceKind
from pipeline.corpus.sources.webdataset import WEBDATASET

__all__ = ["FOLDER", "IMAGENET", "MANIFEST", "PARQUET", "WEBDATASET", "SourceKind"]

# The registry: a row for each kind, in the order in which ``kind: auto`` tries them. The first that matches opens.
KINDS: dict[str, SourceKind] = {kind.name: kind for kind in (MANIFEST, IMAGENET, WEBDATASET, PARQUET, FOLDER)}
