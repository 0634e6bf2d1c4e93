"""The proof from the audit logs of a run that each position was handed out once, with the sample that the plan names.

Two ways that do not lean on each other: each row is compared with what the order says of its position; and for each
epoch the sum of a hash of its samples is compared with that of the dataset's samples, counted without any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store.protocol import Store
from pipeline.base.world import World
from pipeline.records.run import RunCard, list_checkpoint_cards, read_run_card
from pipeline.stream.audit import RankAuditLog, attempt_logs
from pipeline.stream.batch import StreamPlan, mixture_of
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.mixture import Mixture, mixture_digest
from pipeline.stream.order import Ints, mix
from pipeline.stream.recipe import StreamRecipe

_CHUNK_ROWS = 1 << 18
_MAX_PROBLEMS = 20  # that are described; the others are counted
_STEP, _POSITION, _DATASET, _EPOCH, _SHARD, _ROW, _SKIPPED = range(7)


@dataclass(frozen=True)
class Segment:
    """The part of an attempt that the newest weights have seen: positions [start, stop)."""

    attempt: str
    start: int
    stop: int
    world_size: int


@dataclass(frozen=True)
class AuditResult:
    """The result of the check of a run. *problems* are the first of *num_problems*."""

    run: str
    end: int
    segments: tuple[Segment, ...]
    whole_epochs: dict[str, int]
    num_replaced: int
    problems: tuple[str, ...]
    num_problems: int

    @property
    def is_exact(self) -> bool:
        """Whether every position up to *end* was handed out once, with its sample."""
        return not self.num_problems


def check_audit(workspace: Store, run: str) -> AuditResult:
    """Check the effective history of *run*. Raises InputError without a log, DamageError for an unreadable one."""
    card = read_run_card(workspace, run)
    attempts = attempt_logs(workspace, run)
    if not attempts:
        raise InputError(f"run {run!r} has no audit log", "set stream.audit in its recipe")
    check = _Check(card, _readers_of(workspace, card))
    end = _end_of(workspace, card, list(attempts.values())[-1])
    segments = _segments_of(attempts, end, check)
    at = 0
    for segment in segments:
        if segment.start > at:
            check.problem(f"positions {at} to {segment.start - 1} are in no log")
        check.segment(segment, attempts[segment.attempt])
        at = segment.stop
    if at < end:
        check.problem(f"positions {at} to {end - 1} are in no log")
    check.finish()
    return AuditResult(
        run, end, tuple(segments), check.whole_epochs(), check.num_replaced, tuple(check.problems), check.num_problems
    )


def _readers_of(workspace: Store, card: RunCard) -> list[DatasetReader]:
    readers = [DatasetReader(workspace, name) for name in card.dataset_weights]
    digest = mixture_digest([reader.card.digest for reader in readers], list(card.dataset_weights.values()))
    if digest != card.dataset_digest:
        raise DamageError(f"dataset {card.dataset_name} is no longer the one that run {card.name} was trained on")
    return readers


def _end_of(workspace: Store, card: RunCard, newest: list[RankAuditLog]) -> int:
    """Up to where the logs have to be whole: the newest checkpoint, or what all ranks have logged after it."""
    logged = min(log.last_step() + 1 for log in newest) * card.order.batch_size
    return max([logged, *(checkpoint.position for checkpoint in list_checkpoint_cards(workspace, card.name))])


def _segments_of(attempts: dict[str, list[RankAuditLog]], end: int, check: _Check) -> list[Segment]:
    """What of each attempt was not made void by a later one that started before its end."""
    segments: list[Segment] = []
    stop = end
    for attempt, logs in reversed(attempts.items()):
        starts, sizes = {log.start.position for log in logs}, {log.start.world_size for log in logs}
        ranks = sorted(log.start.rank for log in logs)
        if min(starts) < stop:
            if len(starts) > 1 or len(sizes) > 1 or ranks != list(range(min(sizes))):
                check.problem(f"attempt {attempt}: the logs of its ranks {ranks} do not belong together")
            segments.append(Segment(attempt, min(starts), stop, max(sizes)))
            stop = min(starts)
    return segments[::-1]


@dataclass
class _Check:
    card: RunCard
    readers: Sequence[DatasetReader]
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    num_replaced: int = 0

    def __post_init__(self) -> None:
        order = self.card.order
        recipe = StreamRecipe(batch_size=order.batch_size, partitions=order.partitions, window=order.window)
        weights = tuple(self.card.dataset_weights.values())
        self._mixture: Mixture = mixture_of(self.readers, StreamPlan(recipe, order.seed, World(), weights))
        self._counts: Counter[tuple[int, int]] = Counter()  # (dataset, epoch) -> samples
        self._sums: Counter[tuple[int, int]] = Counter()

    def problem(self, text: str, times: int = 1) -> None:
        self.num_problems += times
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(text)

    def segment(self, segment: Segment, logs: list[RankAuditLog]) -> None:
        """Compare the rows of one segment with the plan."""
        batch = self.card.order.batch_size
        chunk = max(1, _CHUNK_ROWS // batch) * batch
        for start in range(segment.start, segment.stop, chunk):
            stop = min(start + chunk, segment.stop)
            self._chunk(segment, start, stop, [(log.start.rank, log.until(stop)) for log in logs])

    def _chunk(self, segment: Segment, start: int, stop: int, logged: list[tuple[int, Ints]]) -> None:
        rows = np.concatenate([part for _, part in logged], axis=1)
        ranks = np.repeat([rank for rank, _ in logged], [part.shape[1] for _, part in logged])
        attempt = f"attempt {segment.attempt}"
        positions = rows[_POSITION]
        inside = (positions >= start) & (positions < stop)
        self._add_rows(rows[:, ~inside], ranks[~inside], f"{attempt}: out of turn")
        rows, ranks = rows[:, inside], ranks[inside]
        times = np.bincount(rows[_POSITION] - start, minlength=stop - start)
        self._add_positions(np.flatnonzero(times == 0) + start, f"{attempt}: not handed out")
        self._add_positions(np.flatnonzero(times > 1) + start, f"{attempt}: handed out more than once")
        order = self.card.order
        owners = rows[_POSITION] % order.partitions // max(1, order.partitions // segment.world_size)
        is_wrong = (owners != ranks) | (rows[_STEP] != rows[_POSITION] // order.batch_size)
        is_wrong |= self._differs(rows)
        self._add_rows(rows[:, is_wrong], ranks[is_wrong], f"{attempt}: not what the order names")

    def _differs(self, rows: Ints) -> NDArray[np.bool_]:
        """Of each row, whether it holds another sample than the plan, or its rule for replacement, gives it."""
        planned = self._mixture.locate(rows[_POSITION])
        self._add(planned.datasets, planned.refs.epochs, planned.refs.shards, planned.refs.rows, rows)
        expected = np.vstack([planned.datasets, planned.refs.epochs, planned.refs.shards, planned.refs.rows])
        for at in np.flatnonzero(rows[_SKIPPED]).tolist():
            self.num_replaced += 1
            dataset = int(planned.datasets[at])
            own = int(planned.positions[at]) + int(rows[_SKIPPED, at]) * self._mixture.partitions
            ref = self._mixture.orders[dataset].ref(own)
            expected[:, at] = dataset, ref.epoch, ref.shard, ref.row
        different: NDArray[np.bool_] = (expected != rows[_DATASET : _ROW + 1]).any(axis=0)
        return different

    def _add(self, datasets: Ints, epochs: Ints, shards: Ints, in_shard: Ints, rows: Ints) -> None:
        """Count what was handed out; for a replaced sample, the one whose place it took."""
        is_original = rows[_SKIPPED] == 0
        datasets, epochs = np.where(is_original, rows[_DATASET], datasets), np.where(is_original, rows[_EPOCH], epochs)
        hashes = _hash(np.where(is_original, rows[_SHARD], shards), np.where(is_original, rows[_ROW], in_shard))
        pairs, numbers = np.unique(np.vstack([datasets, epochs]), axis=1, return_inverse=True)
        for number, (dataset, epoch) in enumerate(pairs.T.tolist()):
            in_pair = numbers.reshape(-1) == number
            self._counts[dataset, epoch] += int(in_pair.sum())
            self._sums[dataset, epoch] += int(hashes[in_pair].sum(dtype=np.uint64))

    def finish(self) -> None:
        """Compare what each epoch has seen with what the dataset holds."""
        for dataset, reader in enumerate(self.readers):
            epochs = sorted(epoch for number, epoch in self._counts if number == dataset)
            expected = _sum_of(reader) if epochs else 0
            for epoch in epochs:
                count, total = self._counts[dataset, epoch], self._mixture.orders[dataset].num_samples
                if count < total and epoch == epochs[-1]:
                    continue
                if count != total or self._sums[dataset, epoch] % (1 << 64) != expected:
                    self.problem(f"{reader.card.name}: epoch {epoch} is not each of its {total} samples once ({count})")

    def whole_epochs(self) -> dict[str, int]:
        """Of each dataset, how many epochs were seen whole."""
        totals = [order.num_samples for order in self._mixture.orders]
        return {
            reader.card.name: sum(
                count >= totals[dataset] for (number, _), count in self._counts.items() if number == dataset
            )
            for dataset, reader in enumerate(self.readers)
        }

    def _add_rows(self, rows: Ints, ranks: Ints, fault: str) -> None:
        for row, rank in zip(rows.T[:_MAX_PROBLEMS].tolist(), ranks[:_MAX_PROBLEMS].tolist(), strict=True):
            _, position, dataset, epoch, shard, in_shard, skipped = row
            sample = f"dataset {dataset}, epoch {epoch}, shard {shard}, row {in_shard}, {skipped} skipped"
            self.problem(f"{fault}: position {position} on rank {rank} ({sample})", 0)
        self.num_problems += rows.shape[1]

    def _add_positions(self, positions: Ints, fault: str) -> None:
        if len(positions):
            first = ", ".join(map(str, positions[:5].tolist()))
            self.problem(f"{fault}: {len(positions)} positions, the first are {first}", len(positions))


def _hash(shards: Ints, rows: Ints) -> NDArray[np.uint64]:
    return mix(mix(shards.astype(np.uint64)) ^ rows.astype(np.uint64))


def _sum_of(reader: DatasetReader) -> int:
    """The sum over all samples of a dataset, modulo 2^64."""
    total = 0
    for shard, size in enumerate(reader.shards.sizes.tolist()):
        rows = np.arange(size, dtype=np.int64)
        total += int(_hash(np.full_like(rows, shard), rows).sum(dtype=np.uint64))
    return total % (1 << 64)
