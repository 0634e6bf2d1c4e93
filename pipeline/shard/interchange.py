"""Does stock webdataset read from a shard exactly the samples that its index names? The only door to webdataset."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import webdataset


def keys_by_webdataset(tar_bytes: bytes) -> list[str]:
    """The keys of the samples that webdataset itself groups out of the archive, in its order."""
    with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as archive:
        files: list[dict[str, Any]] = []
        for member in archive:
            data = archive.extractfile(member)
            if data is not None:
                files.append({"fname": member.name, "data": data.read(), "__url__": ""})
    return [sample["__key__"] for sample in webdataset.tariterators.group_by_keys(iter(files))]
