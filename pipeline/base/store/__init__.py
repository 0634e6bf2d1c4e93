"""Stores: one small protocol over local disk and S3.

``open_store`` gives the store of a URI; ``README.md`` says how to add a store::

    protocol.py       what a store can do, and what it promises; content sums; how a bucket is reached; errors
    open.py           URI -> store, by a table of schemes
    local.py          a folder
    s3.py             a bucket and prefix (the only module that imports boto3)
    s3_responses.py   bodies, checksums and error codes of S3 answers
    s3_multipart.py   objects in parts on S3
    object_file.py    a stored object as a seekable file
"""

from pipeline.base.store.open import normalise_uri, open_store, split_uri
from pipeline.base.store.protocol import (
    BucketSettings,
    ContentSum,
    KeyRefusedError,
    ObjectChangedError,
    ObjectInfo,
    PartsWriter,
    Store,
    Stores,
)

__all__ = [
    "BucketSettings",
    "ContentSum",
    "KeyRefusedError",
    "ObjectChangedError",
    "ObjectInfo",
    "PartsWriter",
    "Store",
    "Stores",
    "normalise_uri",
    "open_store",
    "split_uri",
]
