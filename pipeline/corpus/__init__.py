"""From images as found to a listing of entries.

``open_corpus`` looks at a URI and picks the source::

    sources/folder.py    class/name.jpg, any depth; the folder is the class
    sources/parquet.py   the layout of image sets on dataset hubs: image struct{bytes, path} or binary, label
"""

from pipeline.corpus.opening import open_corpus

__all__ = ["open_corpus"]
