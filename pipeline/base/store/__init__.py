"""Stores: one small protocol over local disk and S3.

``open_store`` gives the store of a URI::

    protocol.py   what a store can do, and what it promises
    sums.py       what a store says of an object's content, and comparing with it
    settings.py   how a bucket is reached
    opening.py    URI -> store
    local.py      a folder
    s3.py         a bucket and prefix (the only module that imports boto3), with
                  s3_errors.py (what went wrong), s3_parts.py (objects in parts) and s3_answers.py (bodies and sums)
    reading.py    an object as a seekable file
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
