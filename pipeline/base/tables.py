"""Parquet files that are already in memory."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in *data*, a whole parquet file.

    Not by threads, nor through a Python file: one of ten processes then aborts at its end (pyarrow 26, exit code -6).
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(columns=list(columns) if columns else None, use_threads=False)
