"""The stage: corpus + recipe -> dataset card. Run again, it continues where it stopped, to the same bytes.

Sharding: plan, write the shards on Ray, put the tables, put the card last. Repair: find the damaged files of a
dataset, count their shards as not written, and shard again beside the existing card.
"""

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

    def write_plan(self, progress: Progress) -> list[ShardRef]:
        """Write the plan where the workers read it."""
        num_entries = self.corpus.entries.num_rows
        progress.start(f"plan {self.name}", num_entries)
        refs = write_plan(self._planned(progress), self.target) if num_entries else []
        progress.finish()
        return refs

    def _planned(self, progress: Progress) -> Iterator[PlannedShard]:
        for shard in plan_shards(self.corpus.entries, self.recipe):
            progress.advance(shard.entries.num_rows)
            yield shard

    def write_shards(self, refs: list[ShardRef]) -> Generator[WrittenShard]:
        """Write the shards *refs*; each as it is done, in any order. Closed, it has ended every task."""
        if refs:
            fingerprint = self.identity.fingerprint
            yield from run_plan(refs, self.corpus.reader, self.target, self.recipe, fingerprint, self.num_cpus)


def build_dataset(request: ShardRequest, progress: Progress, existing: DatasetCard | None = None) -> DatasetCard:
    """Make the dataset and return its card, which is written last.

    With *existing*, the card of the dataset, what is missing of it is made again, to the same bytes.
    Raises TooManyRejectsError when the recipe's limit is passed, InputError when there is nothing to shard,
    ConflictError when another writer has published something else meanwhile, DamageError when what is made again
    differs from what the card names.
    """
    if not request.corpus.num_input:
        raise InputError("the corpus is empty", "nothing to shard")
    try:
        written = _write_shards(request, progress, existing)
        card = publish(request.target, _put_tables(request, written, existing))
    except (TooManyRejectsError, DamageError):
        if existing is None:
            _discard(request.target)
        else:
            _discard_work(request.target)
        raise
    except (FailedError, FileNotFoundError, RuntimeError):
        published = None if existing else find_existing(request.target, request.identity)
        if published is None:
            raise
        # a racer made the same dataset, and swept what was still needed here; what was put here since goes as well
        sweep(request.target, read_shards(request.target, published))
        return published
    sweep(request.target, written.shards())
    return card


@dataclass
class ShardProgress:
    """The results so far. Rejects are on disk: there may be many."""

    num_rejected: int = 0
    rejects: ExternalSorter = field(default_factory=lambda: ExternalSorter(REJECTS_SCHEMA, 1, tie="origin"))
    first_reject: Reject | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    statistics: ShardStatistics = field(default_factory=ShardStatistics)
    entries: dict[int, ShardEntry] = field(default_factory=dict)

    def add(self, shard: WrittenShard) -> None:
        """Take in one shard."""
        self.statistics.merge(shard.statistics)
        if shard.entry is not None:
            self.entries[shard.number] = shard.entry
        self.add_rejects(shard.number + 1, shard.rejects)

    def add_rejects(self, order: int, rejects: Iterable[Reject]) -> None:
        """Take in *rejects*; in the table they are ordered by *order*: 0 for the listing, 1 for shard 0, and so on."""
        rejects = list(rejects)
        self.reasons.update(reject.reason for reject in rejects)
        for reject in rejects:
            if self.first_reject is None or reject.origin < self.first_reject.origin:
                self.first_reject = reject
        self.rejects.add(rejects_table(rejects), np.full(len(rejects), order, dtype=np.uint64))
        self.num_rejected += len(rejects)

    def shards(self) -> list[ShardEntry]:
        """The shards that have samples, in their order."""
        return [self.entries[number] for number in sorted(self.entries)]


def _write_shards(request: ShardRequest, progress: Progress, existing: DatasetCard | None) -> ShardProgress:
    written = ShardProgress()
    for table in request.corpus.rejects.chunks():
        written.add_rejects(0, (Reject(**row) for row in table.to_pylist()))
    refs = request.write_plan(progress)
    expected = _expected_digests(request, existing)
    fail_point("shard.after-plan")
    progress.start(f"shard {request.name}", len(refs))
    unknown = None if existing is None else ExpectedDigests()
    refs = [replace(ref, expected=expected.get(ref.number, unknown)) for ref in refs]
    with closing(request.write_shards(refs)) as shards:
        for shard in shards:
            written.add(shard)
            check_rejects(written, request, ended=False)
            progress.advance(note=f"{written.num_rejected} rejected" if written.num_rejected else "")
    progress.finish()
    check_rejects(written, request, ended=True)
    fail_point("shard.after-shards")
    return written


def _expected_digests(request: ShardRequest, existing: DatasetCard | None) -> dict[int, ExpectedDigests]:
    """Digests by number of the shards of *existing*, as far as its table can be read."""
    if existing is None:
        return {}
    try:
        shards = read_shards(request.target, existing)
    except DamageError:
        return {}  # the dataset digest is compared in the end
    return {shard_number(shard.name): ExpectedDigests(shard.sha256, shard.index_sha256) for shard in shards}


def _put_tables(request: ShardRequest, written: ShardProgress, existing: DatasetCard | None) -> DatasetCard:
    """Put the tables; the card that names them."""
    target, corpus, shards = request.target, request.corpus, written.shards()
    expected = existing.tables if existing else {}
    tables = put_tables(target, shards, written.rejects.in_order(), corpus.duplicates.chunks(), expected)
    card = make_card(request.name, corpus, request.identity, shards, written.statistics, written.num_rejected, tables)
    if card.num_input != card.num_samples + card.num_rejected + card.num_duplicates:
        raise FailedError(
            f"{request.name}: {card.num_input} images came in; {card.num_samples} were written, {card.num_rejected}"
            f" rejected, {card.num_duplicates} are duplicates"
        )
    return card


def check_rejects(written: ShardProgress, request: ShardRequest, *, ended: bool) -> None:
    """Raise TooManyRejectsError as soon as the recipe's limit is passed, not only when all shards are written."""
    recipe, num_input = request.recipe, request.corpus.num_input
    if written.first_reject is None:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(written.reasons.items()))
    summary = f"{written.num_rejected} of {num_input} images rejected ({reasons}; first: {written.first_reject.origin})"
    if ended and not written.entries:
        raise TooManyRejectsError(f"no image of the corpus can be used: {summary}", "check the source")
    if written.num_rejected > max(recipe.tolerated_rejects, recipe.max_reject_ratio * num_input):
        raise TooManyRejectsError(summary, f"mend the corpus, or raise max_reject_ratio ({recipe.max_reject_ratio})")


def _discard(target: Store) -> None:
    """Remove what was written of a dataset that will get no card, so that nothing of it is taken up later."""
    if target.head(CARD) is not None:
        return  # another writer published meanwhile: it is that writer's now
    for info in list(target.list()):
        target.delete(info.key)
    target.sweep()
    target.prune()


def _discard_work(target: Store) -> None:
    """Remove what a refused repair has left; the dataset itself stays as it is."""
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
    for _, problems_of_shard in find_damaged(shards, target, num_cpus):
        problems += problems_of_shard
        progress.advance(note=f"{len(problems)} damaged" if problems else "")
    progress.finish()
    return problems


def _has_digest(target: Store, name: str, digest: str) -> bool:
    try:
        return sha256_hex(target.read(name)) == digest
    except FileNotFoundError:
        return False


def _shards_by_indexes(target: Store) -> list[ShardEntry]:
    """The entries that the indexes themselves give, where the table of shards is lost."""
    names = [info.key.replace(".parquet", ".tar") for info in target.list("shard-") if info.key.endswith(".parquet")]
    return [entry for name in names if (entry := read_entry(target, name)) is not None]


def clear_damage(target: Store, problems: list[str]) -> None:
    """Make the shards that *problems* name count as not written. A problem begins with the name of its file."""
    for name in {problem.partition(":")[0] for problem in problems}:
        if name.startswith("shard-"):
            target.delete(index_name(name.replace(".parquet", ".tar")))
