"""A checkpoint in a store as a FragmentReader. Nothing is handed out of a file before its digest is verified."""

from __future__ import annotations

import hashlib
import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.errors import DamageError, MismatchError
from pipeline.base.store.protocol import Store
from pipeline.checkpoints.shard_file import (
    LENGTH_BYTES,
    FragmentRange,
    RankHeader,
    cover_problem,
    expected_files,
    header_length,
    parse_header,
)
from pipeline.checkpoints.state import EMA, WEIGHT
from pipeline.records.run import CheckpointCard, StoredFile, step_prefix

_FIRST_BYTES = 64 << 10  # most headers are shorter: one request then
_THREADS = 16
_HASH_BYTES = 4 << 20
Shapes = dict[str, tuple[int, ...]]


class CheckpointReader:
    """Where each range of *card*'s state is, and the verified files that were fetched. Close it, or use ``with``.

    ``headers`` by file name may come from another rank; each is compared with the file's own once that is fetched.
    """

    def __init__(self, workspace: Store, card: CheckpointCard, headers: dict[str, RankHeader] | None = None) -> None:
        self.card = card
        self._workspace, self._prefix = workspace, step_prefix(card.run, card.step)
        self._files = {file.name: file for file in card.files}
        self.headers = read_headers(workspace, card) if headers is None else headers
        self._shapes = next(iter(self.headers.values())).state.shapes
        self._locations: dict[tuple[str, str], list[tuple[int, int, str, int]]] = defaultdict(list)
        for name, header in self.headers.items():
            for piece, offset in header.offsets.items():
                self._locations[piece.kind, piece.name].append((piece.start, piece.stop, name, offset))
        for locations in self._locations.values():
            locations.sort()
        self._opened: dict[str, NDArray[np.uint8]] = {}
        self._resources = ExitStack()

    @property
    def updates(self) -> int:
        """See FragmentReader."""
        return self.card.updates

    def shapes(self) -> Shapes:
        """See FragmentReader."""
        return self._shapes

    def kinds(self) -> set[str]:
        """The kinds of state that it holds."""
        return {kind for kind, _ in self._locations}

    def fetch(self, ranges: Iterable[FragmentRange]) -> None:
        """Fetch and verify the files that hold the elements in *ranges*, of every kind. Raises DamageError."""
        names = {
            name
            for piece in ranges
            for kind in self.kinds()
            for _, _, name, _ in self._overlapping(kind, piece.name, piece.start, piece.stop)
        }
        for name in sorted(names):
            self._bytes_of(name)

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """See FragmentReader. Raises MismatchError for what the checkpoint does not hold, DamageError."""
        if (kind, name) not in self._locations:
            raise MismatchError(
                f"checkpoint {self.card.run}@{self.card.step} holds no {kind} of {name}; "
                f"it has: {', '.join(sorted(self.kinds()))}"
            )
        elements = np.empty(stop - start, dtype=np.float32)
        filled = 0
        for begin, end, file, offset in self._overlapping(kind, name, start, stop):
            first, last = max(begin, start), min(end, stop)
            values = self._bytes_of(file)[offset + (first - begin) * 4 : offset + (last - begin) * 4].view("<f4")
            elements[first - start : last - start] = values
            filled += last - first
        if filled != stop - start:
            raise MismatchError(f"{kind} of {name} has no elements {start}..{stop}")
        return torch.from_numpy(elements)

    def has(self, name: str) -> bool:
        """True when file *name* was fetched and verified."""
        return name in self._opened

    def verify(self, file: StoredFile) -> None:
        """Raise DamageError unless *file* has the bytes that the card names; nothing of it stays here."""
        with tempfile.TemporaryDirectory(prefix="vitpipe-checkpoint-") as folder:
            self._verified(file, Path(folder))

    def close(self) -> None:
        """Let go of the files."""
        self._opened.clear()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _overlapping(self, kind: str, name: str, start: int, stop: int) -> list[tuple[int, int, str, int]]:
        locations = self._locations.get((kind, name), [])
        index = max(0, bisect_right(locations, start, key=lambda location: location[0]) - 1)
        overlapping = []
        while index < len(locations) and locations[index][0] < stop:
            if locations[index][1] > start:
                overlapping.append(locations[index])
            index += 1
        return overlapping

    def _bytes_of(self, name: str) -> NDArray[np.uint8]:
        """The verified bytes of file *name*, mapped into memory: of a local store in place, else of a copy."""
        if name not in self._opened:
            folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="vitpipe-checkpoint-")))
            data = self._verified(self._files[name], folder)
            source_name = f"{self._prefix}/{name}"
            header = data[: self._header_bytes(data, source_name)].tobytes()
            if parse_header(header, len(data), source_name) != self.headers[name]:
                raise DamageError(f"{source_name}: it changed while it was read")
            self._opened[name] = data
        return self._opened[name]

    def _header_bytes(self, data: NDArray[np.uint8], source_name: str) -> int:
        return header_length(data[:LENGTH_BYTES].tobytes(), len(data), source_name)

    def _verified(self, file: StoredFile, folder: Path) -> NDArray[np.uint8]:
        """The bytes of *file*. Read twice before it counts as damaged: the transfer may have been at fault."""
        key = f"{self._prefix}/{file.name}"
        for _ in range(2):
            path = self._workspace.local_path(key)
            if path is None:
                path = folder / "file"
                self._workspace.fetch(key, path)
            data = _mapped(path)
            if len(data) == file.num_bytes and _digest(data) == file.sha256:
                return data
        raise DamageError(f"{file.name}: its bytes are not those that the card names")


@dataclass(frozen=True)
class WithEma:
    """*stored* as a FragmentReader that has a moving average: where none was kept, it begins as the weights."""

    stored: CheckpointReader

    @property
    def updates(self) -> int:
        """See FragmentReader."""
        return self.stored.updates

    def shapes(self) -> Shapes:
        """See FragmentReader."""
        return self.stored.shapes()

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """See FragmentReader."""
        begins = kind == EMA and EMA not in self.stored.kinds()
        return self.stored.read(WEIGHT if begins else kind, name, start, stop)


def read_headers(workspace: Store, card: CheckpointCard) -> dict[str, RankHeader]:
    """The headers of all ranks' files by name, not verified yet, but of one checkpoint and complete.

    Raises DamageError or FileNotFoundError, naming the file.
    """
    names = {file.name.rpartition("/")[2] for file in card.files}
    if names != expected_files(card.world_size) or len(card.files) != card.world_size:
        raise DamageError(f"the card lists {sorted(names)}, not a file of each of {card.world_size} ranks")
    with ThreadPoolExecutor(_THREADS) as pool:
        headers = list(pool.map(lambda file: _read_header(workspace, card, file), card.files))
    by_name = {file.name: header for file, header in zip(card.files, headers, strict=True)}
    for rank, (name, header) in enumerate(by_name.items()):
        _check_state(card, rank, name, header, headers[0].state.shapes)
    pieces = {name: header.offsets for name, header in by_name.items()}
    problem = cover_problem(headers[0].state.shapes, pieces)
    if problem:
        raise DamageError(problem)
    return by_name


def _read_header(workspace: Store, card: CheckpointCard, file: StoredFile) -> RankHeader:
    key = f"{step_prefix(card.run, card.step)}/{file.name}"
    data = workspace.read_range(key, 0, _FIRST_BYTES)
    needed = header_length(data, file.num_bytes, key)
    if needed > len(data):
        data += workspace.read_range(key, len(data), needed - len(data))
    if needed > len(data):
        raise DamageError(f"{key}: it is cut")
    return parse_header(data, file.num_bytes, key)


def _check_state(card: CheckpointCard, rank: int, name: str, header: RankHeader, shapes: Shapes) -> None:
    """Every file says itself what it is of: so none of another step, attempt or run is taken for this one."""
    expected = {"run": card.run, "step": card.step, "attempt": card.attempt, "rank": rank}
    expected |= {"world_size": card.world_size, "updates": card.updates, "shapes": shapes}
    fields = [
        f"{field}: {value} -> {getattr(header.state, field)}" if field != "shapes" else "shapes"
        for field, value in expected.items()
        if getattr(header.state, field) != value
    ]
    if fields:
        raise DamageError(f"{name} is of another checkpoint: {'; '.join(fields)}")


def shape_problems(stored: Shapes, current: Shapes) -> list[str]:
    """How the parameters of a stored and a current model differ, by name."""
    names = sorted(set(stored) | set(current))
    return [
        f"shape of {name}: {stored.get(name, 'absent')} -> {current.get(name, 'absent')}"
        for name in names
        if stored.get(name) != current.get(name)
    ]


def _mapped(path: Path) -> NDArray[np.uint8]:
    if path.stat().st_size == 0:
        return np.empty(0, dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r")


def _digest(data: NDArray[np.uint8]) -> str:
    running = hashlib.sha256()
    for start in range(0, len(data), _HASH_BYTES):
        running.update(data[start : start + _HASH_BYTES].data)
    return running.hexdigest()
