"""Which rows say again what an earlier one said? By sorting on disk, so that 10^9 of them fit."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.rows import Rows, Spool

_MOST = 10_000_000  # repeats that are held in memory: 80 MB
_SCHEMA = pa.schema([("origin", pa.string()), ("position", pa.int64())])


class TooManyRepeatsError(ValueError):
    """More rows repeat an earlier one than are kept in memory."""


def repeated(rows: Rows) -> NDArray[np.int64]:
    """The positions of *rows* whose ``origin`` stands at an earlier position too, ascending."""
    spool = Spool(_SCHEMA, rows.num_rows, "origin")
    start = 0
    for chunk in rows.chunks():
        origins = chunk.column("origin")
        position = pa.array(np.arange(start, start + chunk.num_rows))
        keys = np.fromiter(map(hash, origins.to_pylist()), np.int64, chunk.num_rows).view(np.uint64)
        spool.add(pa.table([origins, position], schema=_SCHEMA), keys)
        start += chunk.num_rows
    found: list[NDArray[np.int64]] = []
    for bucket in spool.in_order():
        found.append(_repeated_in(bucket))
        if sum(map(len, found)) > _MOST:
            raise TooManyRepeatsError
    return np.sort(np.concatenate([np.empty(0, np.int64), *found]))


def _repeated_in(bucket: pa.Table) -> NDArray[np.int64]:
    """Those of a *bucket* in which equal origins stand together: all but the first of each."""
    ordered = bucket.sort_by([("origin", "ascending"), ("position", "ascending")])
    origins = ordered.column("origin").combine_chunks()
    if len(origins) < 2:
        return np.empty(0, np.int64)
    same = pc.equal(origins[1:], origins[:-1]).to_numpy(zero_copy_only=False)
    positions: NDArray[np.int64] = ordered.column("position").to_numpy()
    again: NDArray[np.int64] = positions[1:][same]
    return again
