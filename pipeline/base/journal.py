"""Append-only journals on stores that cannot append: numbered parts of JSON lines below one prefix."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipeline.base.digests import canonical_json
from pipeline.base.store.protocol import Store


class Journal:
    """Collects rows and writes them as ``<prefix>/part-00000000.jsonl``, ``part-00000001.jsonl``, ... at each flush."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self._rows: list[str] = []
        self._parts = 0

    def append(self, row: dict[str, Any]) -> None:
        """Keep *row* until the next flush."""
        self._rows.append(canonical_json(row))

    def flush(self) -> None:
        """Write what was appended since the last flush as one part; nothing when there is nothing."""
        if self._rows:
            self._store.put(f"{self._prefix}/part-{self._parts:08d}.jsonl", ("\n".join(self._rows) + "\n").encode())
            self._parts += 1
            self._rows = []


def read_journal(store: Store, prefix: str) -> Iterator[dict[str, Any]]:
    """Every row below *prefix*, in the order of its parts."""
    for info in store.list(f"{prefix}/"):
        for line in store.read(info.key).decode().splitlines():
            yield json.loads(line)
