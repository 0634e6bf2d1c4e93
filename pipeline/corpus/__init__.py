"""From images as found to a listing of entries.

``open_corpus`` looks at what was named and picks the source of each::

    opening.py    which kind is it
    sources/      one file per kind: image folder, parquet, webdataset tars, ImageNet's tar of tars, manifest
    joined.py     several sources -> one listing, in bounded memory
    labels.py     labels as found -> numbers of the class table
    classes.py    class tables: from a file, or made from the sources
"""

from pipeline.corpus.listing import open_corpus

__all__ = ["open_corpus"]
