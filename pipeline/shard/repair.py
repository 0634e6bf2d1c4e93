"""Finding what is damaged of a dataset, so that sharding again makes that anew, and only that."""

from __future__ import annotations

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.progress import Progress
from pipeline.base.store import Store
from pipeline.records.dataset import DatasetCard, ShardEntry
from pipeline.shard.commit import read_shards
from pipeline.shard.spread import find_damaged
from pipeline.shard.write import index_name, read_entry


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
