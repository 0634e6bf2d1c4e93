"""The stage: corpus + recipe -> dataset card. Give it again and it goes on where it stopped, to the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.base.digests import sha256_hex
from pipeline.base.disk_table import ExternalSorter
from pipeline.base.errors import DamageError, FailedError, InputError, TooManyRejectsError
from pipeline.base.failpoints import fail_point
from pipeline.base.progress import Progress
from pipeline.base.store.protocol import Store
from pipeline.records.corpus import REJECTS_SCHEMA, Corpus, Reject, rejects_table
from pipeline.records.dataset import CARD, WORK, DatasetCard, ShardEntry
from pipeline.shard.commit import DatasetFingerprint, find_existing, make_card, publish, put_tables, read_shards, sweep
from pipeline.shard.index import ShardStatistics, index_name, read_entry
from pipeline.shard.plan import PlannedShard, plan_shards, shard_number
from pipeline.shard.ray_executor import find_damaged, run_plan
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.worker import ShardRef, write_plan
from pipeline.shard.writer import ExpectedDigests, WrittenShard


@dataclass(frozen=True)
class ShardRequest:
    """One dataset to be made: *corpus* as *name* into *target*. *num_cpus*: what each task asks of the cluster."""

    name: str
    corpus: Corpus
    recipe: ShardRecipe
    target: Store
    identity: DatasetFingerprint
    num_cpus: float = 1

    def lay(self, progress: Progress) -> list[ShardRef]:
        """Write the plan where the tasks find it."""
        num_entries = self.corpus.entries.num_rows
        progress.start(f"plan {self.name}", num_entries)
        laid = write_plan(self._planned(progress), self.target) if num_entries else []
        progress.finish()
        return laid

    def _planned(self, progress: Progress) -> Iterator[PlannedShard]:
        for shard in plan_shards(self.corpus.entries, self.recipe):
            progress.advance(shard.entries.num_rows)
            yield shard

    def run(self, laid: list[ShardRef]) -> Generator[WrittenShard]:
        """Write the shards *laid*, in any order. Closed, it has ended every task."""
        if laid:
            yield from run_plan(
                laid, self.corpus.reader, self.target, self.recipe, self.identity.fingerprint, self.num_cpus
            )


def build_dataset(work: ShardRequest, progress: Progress, existing: DatasetCard | None = None) -> DatasetCard:
    """Make the dataset and return its card, which is written last.

    With *existing*, the card that stands there, what is missing of that dataset is made again, to the same bytes.
    Raises TooManyRejectsError when the recipe's limit is passed, InputError when there is nothing to shard,
    ConflictError when another writer has published something else meanwhile, DamageError when what is made again
    differs from what the card names.
    """
    if not work.corpus.num_input:
        raise InputError("the corpus is empty", "nothing to shard")
    try:
        written = _write(work, progress, existing)
        card = publish(work.target, _card_of(work, written, existing))
    except (TooManyRejectsError, DamageError):
        if existing is None:
            _discard(work.target)
        else:
            _discard_work(work.target)
        raise
    except (FailedError, FileNotFoundError, RuntimeError):
        theirs = None if existing else find_existing(work.target, work.identity)
        if theirs is None:
            raise
        # a racer made the same dataset, and swept what was still needed here; what was put here since goes as well
        sweep(work.target, read_shards(work.target, theirs))
        return theirs
    sweep(work.target, written.shards())
    return card


@dataclass
class ShardProgress:
    """What has come back of the tasks so far. Rejects are on disk: there may be many."""

    num_rejected: int = 0
    rejects: ExternalSorter = field(default_factory=lambda: ExternalSorter(REJECTS_SCHEMA, 1, tie="origin"))
    first_reject: Reject | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    statistics: ShardStatistics = field(default_factory=ShardStatistics)
    entries: dict[int, ShardEntry] = field(default_factory=dict)

    def add(self, shard: WrittenShard) -> None:
        """Take in what became of one shard."""
        self.statistics.merge(shard.statistics)
        if shard.entry is not None:
            self.entries[shard.number] = shard.entry
        self.add_rejects(shard.number + 1, shard.rejects)

    def add_rejects(self, place: int, rejects: Iterable[Reject]) -> None:
        """Take in *rejects*; in the table they are ordered by *place*: 0 for the listing, 1 for shard 0, and so on."""
        rejects = list(rejects)
        self.reasons.update(reject.reason for reject in rejects)
        for reject in rejects:
            if self.first_reject is None or reject.origin < self.first_reject.origin:
                self.first_reject = reject
        self.rejects.add(rejects_table(rejects), np.full(len(rejects), place, dtype=np.uint64))
        self.num_rejected += len(rejects)

    def shards(self) -> list[ShardEntry]:
        """The shards that have samples, in their order."""
        return [self.entries[number] for number in sorted(self.entries)]


def _write(work: ShardRequest, progress: Progress, existing: DatasetCard | None) -> ShardProgress:
    written = ShardProgress()
    for table in work.corpus.rejects.chunks():
        written.add_rejects(0, (Reject(**row) for row in table.to_pylist()))
    laid = work.lay(progress)
    expected = _expected(work, existing)
    fail_point("shard.after-plan")
    progress.start(f"shard {work.name}", len(laid))
    unknown = None if existing is None else ExpectedDigests()
    laid = [replace(shard, expected=expected.get(shard.number, unknown)) for shard in laid]
    with closing(work.run(laid)) as shards:
        for shard in shards:
            written.add(shard)
            check_rejects(written, work, ended=False)
            progress.advance(note=f"{written.num_rejected} rejected" if written.num_rejected else "")
    progress.finish()
    check_rejects(written, work, ended=True)
    fail_point("shard.after-shards")
    return written


def _expected(work: ShardRequest, existing: DatasetCard | None) -> dict[int, ExpectedDigests]:
    """Digests by number of the shards of *existing*, as far as its table can be read."""
    if existing is None:
        return {}
    try:
        shards = read_shards(work.target, existing)
    except DamageError:
        return {}  # the dataset digest is compared in the end
    return {shard_number(shard.name): ExpectedDigests(shard.sha256, shard.index_sha256) for shard in shards}


def _card_of(work: ShardRequest, written: ShardProgress, existing: DatasetCard | None) -> DatasetCard:
    shards = written.shards()
    expected = existing.tables if existing else {}
    tables = put_tables(work.target, shards, written.rejects.in_order(), work.corpus.duplicates.chunks(), expected)
    card = make_card(work.name, work.corpus, work.identity, shards, written.statistics, written.num_rejected, tables)
    if card.num_input != card.num_samples + card.num_rejected + card.num_duplicates:
        raise FailedError(
            f"{work.name}: {card.num_input} images came in; {card.num_samples} were written, {card.num_rejected}"
            f" rejected, {card.num_duplicates} are duplicates"
        )
    return card


def check_rejects(written: ShardProgress, work: ShardRequest, *, ended: bool) -> None:
    """Raise as soon as the limit is passed: nobody wants to wait a day for that."""
    recipe, num_input = work.recipe, work.corpus.num_input
    if written.first_reject is None:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(written.reasons.items()))
    told = f"{written.num_rejected} of {num_input} images rejected ({reasons}; first: {written.first_reject.origin})"
    if ended and not written.entries:
        raise TooManyRejectsError(f"no image of the corpus can be used: {told}", "check the source")
    if written.num_rejected > max(recipe.tolerated_rejects, recipe.max_reject_ratio * num_input):
        raise TooManyRejectsError(told, f"mend the corpus, or raise max_reject_ratio ({recipe.max_reject_ratio})")


def _discard(target: Store) -> None:
    """Remove what was written of a dataset that will get no card, so that nothing of it is taken up later."""
    if target.head(CARD) is not None:
        return  # of another writer meanwhile: it is theirs now
    for info in list(target.list()):
        target.delete(info.key)
    target.sweep()
    target.prune()


def _discard_work(target: Store) -> None:
    """Remove what a repair that is refused has left; the dataset itself stays as it is."""
    for info in list(target.list(f"{WORK}/")):
        target.delete(info.key)
    target.sweep()
    target.prune()


def find_damage(target: Store, card: DatasetCard, progress: Progress, num_cpus: float = 1) -> list[str]:
    """Every problem with the bytes of tables, shards and indexes, one line each. Digests every byte, on Ray."""
    problems = [f"{name}: damaged" for name, digest in card.tables.items() if not _has_digest(target, name, digest)]
    try:
        shards = read_shards(target, card)
    except DamageError:
        shards = _shards_by_indexes(target)
    progress.start(f"check {card.name}", len(shards))
    for _, found in find_damaged(shards, target, num_cpus):
        problems += found
        progress.advance(note=f"{len(problems)} damaged" if problems else "")
    progress.finish()
    return problems


def _shards_by_indexes(target: Store) -> list[ShardEntry]:
    """What the indexes themselves say, where the table of shards is lost."""
    names = [info.key.replace(".parquet", ".tar") for info in target.list("shard-") if info.key.endswith(".parquet")]
    return [entry for name in names if (entry := read_entry(target, name)) is not None]


def clear_damage(target: Store, problems: list[str]) -> None:
    """Make the shards that *problems* name count as not written. A problem begins with the name of its file."""
    for name in {problem.partition(":")[0] for problem in problems}:
        if name.startswith("shard-"):
            target.delete(index_name(name.replace(".parquet", ".tar")))


def _has_digest(target: Store, name: str, digest: str) -> bool:
    try:
        return sha256_hex(target.read(name)) == digest
    except FileNotFoundError:
        return False
