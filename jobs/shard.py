"""``vitpipe shard``: make the datasets of a recipe, or one from a source."""

from __future__ import annotations

from typing import Any

from jobs.cluster import connected, require_cpus
from jobs.corpora.embedded import resolve_source
from jobs.recipe import ChainRecipe, ShardStage
from pipeline.base.progress import Progress
from pipeline.base.store import open_store
from pipeline.corpus import open_corpus
from pipeline.records.corpus import Corpus
from pipeline.records.dataset import DatasetCard, dataset_prefix
from pipeline.shard.recipe import ShardRecipe


def shard(recipe: ChainRecipe, progress: Progress, address: str | None, debug: bool) -> list[DatasetCard]:
    """List every source first, so that a missing one is told before a cluster starts; then make the datasets."""
    corpora = list_sources(recipe)
    with connected(address, debug):
        return shard_connected(recipe, corpora, progress)


def list_sources(recipe: ChainRecipe) -> list[tuple[ShardStage, Corpus]]:
    """Each stage of the recipe with its corpus. Raises InputError, and StoreAccessError for the workspace."""
    workspace = open_store(recipe.workspace, recipe.stores)
    workspace.check_writable()
    return [(stage, open_corpus(resolve_source(stage.source, workspace), recipe.stores)) for stage in recipe.shard]


def shard_connected(
    recipe: ChainRecipe, corpora: list[tuple[ShardStage, Corpus]], progress: Progress
) -> list[DatasetCard]:
    """Make the datasets on the cluster that ray is connected to."""
    # Imported here: it brings ray along, which a refused recipe does without.
    from pipeline.shard.build import build_dataset  # noqa: PLC0415

    require_cpus("shard", 1)
    cards = []
    for stage, corpus in corpora:
        target = open_store(f"{recipe.workspace}/{dataset_prefix(stage.name)}", recipe.stores)
        plain = ShardRecipe.model_validate(stage.model_dump(exclude={"source", "name"}))
        cards.append(build_dataset(corpus, plain, target, stage.name, progress=progress))
    return cards


def as_result(card: DatasetCard) -> dict[str, Any]:
    """The card's numbers, for ``--json``."""
    fields = {"name", "digest", "num_input", "num_samples", "num_rejected", "num_duplicates", "num_shards", "num_bytes"}
    return card.model_dump(include=fields)


if __name__ == "__main__":
    from jobs.cli import main

    main(["shard"])
