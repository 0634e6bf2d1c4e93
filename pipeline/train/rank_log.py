"""The log of a rank in the workspace: ``runs/<name>/logs/<attempt>/rank-<k>.log``.

The log is short (starts, checkpoints, warnings, errors), so all of it is put each time that it has grown.
"""

from __future__ import annotations

import logging
import threading
import time

from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.base.store.protocol import Store

_MAX_CHARACTERS = 4_000_000  # beyond it the middle is left out: the start and the end say most
_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"


class RankLogHandler(logging.Handler):
    """Inside, collects what the loggers of ``pipeline`` log at INFO and above."""

    def __init__(self, store: Store, key: str) -> None:
        super().__init__(logging.INFO)
        self._store, self._key = store, key
        self._lines: list[str] = []
        self._num_put = 0
        self._lock = threading.Lock()
        formatter = logging.Formatter(_FORMAT, "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)
        self._logger = logging.getLogger("pipeline")
        self._level = self._logger.level

    def __enter__(self) -> RankLogHandler:
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._logger.error("this rank ends: %s: %s", type(error).__name__, error, exc_info=error)
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
        self.flush_to_store()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep *record*."""
        try:
            self._lines.append(self.format(record))
        except Exception:
            self.handleError(record)

    def flush_to_store(self) -> None:
        """Put the log when it has grown. A store that is away does not disturb: the log is put the next time."""
        with self._lock:
            count = len(self._lines)
            if count == self._num_put:
                return
            text = "\n".join(self._lines[:count]) + "\n"
            if len(text) > _MAX_CHARACTERS:
                half = _MAX_CHARACTERS // 2
                text = f"{text[:half]}\n[...]\n{text[-half:]}"
            try:
                self._store.put(self._key, text.encode())
            except (FailedError, StoreAccessError) as error:
                logging.getLogger(__name__).debug("the log was not stored: %s", error)
                return
            self._num_put = count
