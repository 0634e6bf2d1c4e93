"""Save a snapshot: each rank puts its file; rank 0 compares what they wrote with what they must have written.

The card is written last, create-only, by the newest attempt. Nothing here decides what happens when a save fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.base.errors import DamageError, FailedError
from pipeline.base.failpoints import fail_point
from pipeline.base.store.protocol import Store
from pipeline.base.world import World
from pipeline.checkpoints.card import check_complete, check_newest
from pipeline.checkpoints.shard_file import (
    FragmentRange,
    RankState,
    cover_problem,
    expected_files,
    fragment_range,
    pack_header,
    rank_file,
)
from pipeline.checkpoints.state import Snapshot
from pipeline.records.run import CheckpointCard, StoredFile, checkpoint_card_key, read_checkpoint_card, step_prefix

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class SaveContext:
    """What all checkpoints of one attempt share. ``parent``: RUN@STEP that the run was forked from."""

    workspace: Store
    run: str
    attempt: str
    zero_stage: int
    dtype: str
    fingerprint: str
    dataset_digest: str
    code_version: str
    parent: str | None = None


@dataclass(frozen=True)
class TrainPosition:
    """Where training was: updates of the network, samples of the stream."""

    step: int
    position: int


@dataclass(frozen=True)
class WrittenFiles:
    """What one rank wrote, as it reports to rank 0."""

    train_position: TrainPosition
    file: StoredFile
    pieces: tuple[FragmentRange, ...]
    updates: int


def put_rank_file(saving: SaveContext, world: World, train_position: TrainPosition, snapshot: Snapshot) -> WrittenFiles:
    """Store this rank's fragments, hashed while they are written, without a second copy in memory."""
    pieces = [fragment_range(fragment) for fragment in snapshot.fragments()]
    state = RankState(
        run=saving.run,
        step=train_position.step,
        attempt=saving.attempt,
        rank=world.rank,
        world_size=world.size,
        updates=snapshot.updates,
        shapes=snapshot.shapes(),
    )
    name = f"{saving.attempt}/{rank_file(world.rank)}"
    values = snapshot.buffer.numpy().data.cast("B") if snapshot.buffer.numel() else memoryview(b"")
    fail_point("checkpoint.before-file")
    file = _put_streamed(saving, train_position, name, [memoryview(pack_header(state, pieces)), values])
    fail_point("checkpoint.after-file")
    return WrittenFiles(train_position, file, tuple(pieces), snapshot.updates)


def put_weights(saving: SaveContext, train_position: TrainPosition, file_name: str, data: bytes) -> StoredFile:
    """Store the whole weights *data* as the attempt's *file_name*."""
    fail_point(f"checkpoint.before-{file_name}")
    file = _put_streamed(saving, train_position, f"{saving.attempt}/{file_name}", [memoryview(data)])
    fail_point(f"checkpoint.after-{file_name}")
    return file


def _put_streamed(
    saving: SaveContext, train_position: TrainPosition, name: str, parts: Iterable[memoryview]
) -> StoredFile:
    """Put *parts*, joined; then look whether what is there has that size."""
    workspace = saving.workspace
    key = f"{step_prefix(saving.run, train_position.step)}/{name}"
    digest, written = hashlib.sha256(), 0
    with workspace.incoming(key) as path, path.open("wb") as target:
        for part in parts:
            for start in range(0, len(part), _CHUNK_BYTES):
                chunk = part[start : start + _CHUNK_BYTES]
                digest.update(chunk)
                target.write(chunk)
                written += len(chunk)
                fail_point("checkpoint.in-file")
    info = workspace.head(key)
    if info is None or info.num_bytes != written:
        stored = f"{info.num_bytes} bytes" if info else "nothing"
        raise DamageError(f"{key}: {written} bytes were put, the store has {stored}")
    return StoredFile(name=name, num_bytes=written, sha256=digest.hexdigest())


def check_written(
    shapes: dict[str, tuple[int, ...]], train_position: TrainPosition, written: list[WrittenFiles]
) -> None:
    """Raise FailedError unless the ranks wrote one position, in exactly the files of their world, all of it once."""
    differing = [row for row in written if (row.train_position, row.updates) != (train_position, written[0].updates)]
    if differing:
        first, second = train_position, differing[0].train_position
        raise FailedError(
            f"the ranks are at different steps: step {first.step} at sample {first.position},"
            f" and step {second.step} at sample {second.position}"
        )
    names = {row.file.name.rpartition("/")[2] for row in written}
    expected = expected_files(len(written))
    if names != expected:
        raise FailedError(f"wrote {sorted(names)}, expected {sorted(expected)}")
    problem = cover_problem(shapes, {row.file.name: row.pieces for row in written})
    if problem:
        raise FailedError(problem)


def make_card(
    saving: SaveContext,
    train_position: TrainPosition,
    written: list[WrittenFiles],
    weights: StoredFile,
    ema_weights: StoredFile | None = None,
) -> CheckpointCard:
    """The card of what ``check_written`` has passed. Raises DamageError when a file is not there any more."""
    card = CheckpointCard(
        run=saving.run,
        step=train_position.step,
        position=train_position.position,
        updates=written[0].updates,
        attempt=saving.attempt,
        world_size=len(written),
        zero_stage=saving.zero_stage,
        dtype=saving.dtype,
        fingerprint=saving.fingerprint,
        dataset_digest=saving.dataset_digest,
        code_version=saving.code_version,
        parent=saving.parent,
        files=tuple(row.file for row in written),
        weights=weights,
        ema_weights=ema_weights,
    )
    problem = check_complete(saving.workspace, card)
    if problem:
        raise DamageError(problem)
    return card


def commit(saving: SaveContext, card: CheckpointCard) -> CheckpointCard | None:
    """Write the card, last and create-only; None, or another attempt's card that exists already.

    Raises SupersededError when a newer attempt has begun, DamageError when what exists is no card of the step.
    """
    fail_point("checkpoint.before-card")
    check_newest(saving.workspace, saving.run, saving.attempt)
    fail_point("checkpoint.at-card")
    key = checkpoint_card_key(card.run, card.step)
    created = saving.workspace.put_if_absent(key, card.to_json())
    fail_point("checkpoint.after-card")
    if created:
        return None
    existing = read_checkpoint_card(saving.workspace, card.run, card.step)
    return None if existing == card else existing


def discard(saving: SaveContext, world: World, step: int, names: Iterable[str] = ()) -> None:
    """Remove this rank's file of a *step* that was not committed, and *names* beside it, to make room."""
    for name in (rank_file(world.rank), *names):
        saving.workspace.delete(f"{step_prefix(saving.run, step)}/{saving.attempt}/{name}")
