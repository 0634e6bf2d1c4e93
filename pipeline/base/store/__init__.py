"""Stores: one small protocol over local disk and S3.

``open_store`` gives the store of a URI::

    protocol.py   what a store can do, and what it promises
    local.py      a folder
    s3.py         a bucket and prefix (the only module that imports boto3)
    opening.py    URI -> store, with settings per bucket
"""

from pipeline.base.store.opening import BucketSettings, Stores, normalise_uri, open_store, split_uri
from pipeline.base.store.protocol import ObjectInfo, Store

__all__ = ["BucketSettings", "ObjectInfo", "Store", "Stores", "normalise_uri", "open_store", "split_uri"]
