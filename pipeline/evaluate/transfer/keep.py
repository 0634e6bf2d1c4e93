"""Long fine-tunings are kept on the way, in the file format of checkpoints: one that was killed goes on where it was,
bit for bit, since a training draws nothing that is not fixed by its seed and step.

::

    evaluations/<id>/tuning-<training>.safetensors   weights, optimizer state, average; removed when all is done
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.store import Store
from pipeline.checkpoints.layout import Piece
from pipeline.checkpoints.rankfile import RankState, header_length, pack_header, parse_header, piece_of
from pipeline.train.single import SingleEngine

KEEP_SECONDS = 300.0  # between two files; a shorter training leaves none


class Keep:
    """What is kept of one training of an evaluation; *of*: all that fixes it beside the evaluation."""

    def __init__(self, workspace: Store, evaluation_id: str, *of: str | float) -> None:
        self._workspace = workspace
        self._key = f"{_prefix(evaluation_id)}{fingerprint(list(of))[:16]}.safetensors"
        self._last = time.monotonic()
        self._has_kept = False

    def resume(self, engine: SingleEngine) -> int:
        """Set *engine* to what is kept, and return how many steps are done; 0 for nothing, or nothing whole."""
        try:
            kept = _Kept(self._workspace.read(self._key), self._key)
        except (FileNotFoundError, DamageError):
            return 0
        engine.load(kept)
        self._has_kept = True
        return kept.state.step

    def at_step(self, engine: SingleEngine, step: int, num_steps: int) -> None:
        """Keep what *engine* has, if it is time to, or if it is the end of what was kept before."""
        is_over = time.monotonic() - self._last >= KEEP_SECONDS
        if is_over or (step == num_steps and self._has_kept):
            self._workspace.put(self._key, _packed(engine, self._key, step))
            self._last, self._has_kept = time.monotonic(), True


def remove_kept(workspace: Store, evaluation_id: str) -> None:
    """Remove what trainings of the evaluation left."""
    for info in list(workspace.list(_prefix(evaluation_id))):
        workspace.delete(info.key)


def _prefix(evaluation_id: str) -> str:
    return f"evaluations/{evaluation_id}/tuning-"


def _packed(engine: SingleEngine, where: str, step: int) -> bytes:
    fragments = engine.fragments()
    body = b"".join(fragment.values.detach().cpu().contiguous().numpy().tobytes() for fragment in fragments)
    state = RankState(
        run=where,
        step=step,
        attempt=sha256_hex(body),
        rank=0,
        world_size=1,
        updates=engine.updates,
        shapes=engine.shapes(),
    )
    return pack_header(state, [piece_of(fragment) for fragment in fragments]) + body


class _Kept:
    """The fragments of such a file. Raises DamageError unless it is whole, and the one that is meant."""

    def __init__(self, data: bytes, where: str) -> None:
        header = parse_header(data, len(data), where)
        self.state, self._offsets, self._data = header.state, header.offsets, bytearray(data)
        body = memoryview(data)[header_length(data, len(data), where) :]
        if self.state.run != where or self.state.attempt != sha256_hex(body):
            raise DamageError(f"{where}: its bytes are not those that were kept")

    @property
    def updates(self) -> int:
        """See FragmentReader."""
        return self.state.updates

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See FragmentReader."""
        return self.state.shapes

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """See FragmentReader. One process kept it, so a piece is asked for as it was given."""
        offset = self._offsets[Piece(kind, name, start, stop)]
        return torch.frombuffer(self._data, dtype=torch.float32, count=stop - start, offset=offset)
