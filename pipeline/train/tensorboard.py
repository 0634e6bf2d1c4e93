"""TensorBoard's event files in the workspace, written in parts, since a store cannot append.

::

    runs/<name>/tensorboard/0001/events.out.tfevents.<time>.<host>.<process>...   several for each attempt

TensorBoard reads them with ``--reload_multifile true`` while a run goes on, and without once it is over.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipeline.base.store import Store


class EventFiles:
    """Scalars of one attempt; each flush puts a file of its own below *prefix*."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self._rows: list[tuple[int, float, Mapping[str, float]]] = []
        self._parts = 0

    def add(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """*values* by tag at *step*, measured at *time* (seconds since 1970)."""
        self._rows.append((step, time, values))

    def flush(self) -> None:
        """Put what was added since the last flush; nothing when there is nothing."""
        if not self._rows:
            return
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped] # noqa: PLC0415 - with protobuf; only rank 0 needs it, and not at start

        with tempfile.TemporaryDirectory(prefix="vitpipe-events-") as folder:
            # Its queue without a limit: its thread, which dies on a full disk, would leave us waiting for room in it.
            writer = SummaryWriter(folder, max_queue=0, filename_suffix=f".part-{self._parts:05d}")
            for step, time, values in self._rows:
                for tag, value in values.items():
                    writer.add_scalar(tag, value, step, walltime=time)
            writer.close()
            (path,) = Path(folder).iterdir()
            self._store.put(f"{self._prefix}/{path.name}", path.read_bytes())
        self._rows, self._parts = [], self._parts + 1
