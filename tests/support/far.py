"""A folder that plays a bucket for tests of what happens on this side of it; the real server has tests of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.base.store.local import LocalStore


class FarStore(LocalStore):
    """Cannot be read in place, counts what is asked for, and has moods: *mood* is called before each answer."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[tuple[str, int]] = []  # key and first byte
        self.mood: Callable[[str], object] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "asked": [], "mood": None}

    def local_path(self, key: str) -> Path | None:
        """There is none."""
        return None

    def read(self, key: str, etag: str = "") -> bytes:
        """Noted."""
        self._note(key, 0)
        return super().read(key, etag)

    def read_range(self, key: str, start: int, length: int, etag: str = "") -> bytes:
        """Noted."""
        self._note(key, start)
        return super().read_range(key, start, length, etag)

    def stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        """Noted."""
        self._note(key, start)
        yield from super().stream(key, start)

    def fetched(self, suffix: str = ".tar") -> list[str]:
        """Names of the objects that were begun, in order."""
        return [Path(key).name for key, start in self.asked if start == 0 and key.endswith(suffix)]

    def _note(self, key: str, start: int) -> None:
        with _GUARD:
            self.asked.append((key, start))
        if self.mood:
            self.mood(key)


_GUARD = threading.Lock()


def cached_shards(folder: Path) -> list[Path]:
    """The shards that a cache in *folder* holds, verified or not."""
    return sorted(path for path in folder.rglob("*") if path.suffix in {".tar", ".unverified"})
