"""``vitpipe shard``: make the datasets of a recipe, or one from a source."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from jobs.base.console import make_progress, print_result, print_table, print_text
from jobs.base.entrypoint import main
from jobs.base.options import (
    Address,
    Debug,
    Endpoint,
    Json,
    Overrides,
    Workspace,
    recipe_changes,
    require_workspace,
    stores_of,
)
from jobs.base.ray_session import cluster_cpus, connected, require_cpus
from jobs.base.recipe import ChainRecipe, ShardStage, load_chain, require
from pipeline.base.config import apply_overrides, build
from pipeline.base.errors import FailedError, InputError
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store
from pipeline.corpus.embedded.corpora import resolve_source
from pipeline.corpus.listing import open_corpus
from pipeline.corpus.prepare import PrepareSettings, prepare
from pipeline.corpus.scan import Scanner
from pipeline.records.corpus import Corpus
from pipeline.records.dataset import WORK, DatasetCard, dataset_prefix, read_dataset_card
from pipeline.shard.commit import DatasetFingerprint, find_existing, fingerprint_dataset, read_shards, sweep, take_lease
from pipeline.shard.estimate import Estimate, estimate
from pipeline.shard.plan import num_shards, total_bytes
from pipeline.shard.recipe import ShardRecipe

_COLUMNS = ("dataset", "input", "written", "rejected", "duplicates", "shards", "digest")


def shard(
    source: Annotated[
        str, typer.Argument(help="folder, file, s3:// prefix or object, embedded://NAME/SPLIT; or a recipe")
    ],
    overrides: Overrides = None,
    workspace: Workspace = None,
    name: Annotated[str | None, typer.Option(help="name of the dataset")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it will cost, and write nothing")] = False,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Shard a corpus into WebDataset tars, or all corpora of a recipe. Given again, damaged shards are made anew.

    `vitpipe shard photos/ --workspace ws --name photos seed=1 max_samples=5000 duplicates.within=pixels`
    """
    if source.endswith((".yaml", ".yml")):
        chain = load_chain(source, overrides or [], recipe_changes(workspace, endpoint))
        require(chain.shard, "shard", source)
    else:
        if not name:
            raise InputError("which name should the dataset have?", "add --name NAME")
        section = build(ShardStage, apply_overrides({"source": source, "name": name}, overrides or []), "shard")
        chain = ChainRecipe(
            workspace=require_workspace(workspace), stores=stores_of(workspace, endpoint), shard=(section,)
        )
    if dry_run:
        _show_estimates(chain, as_json)
    else:
        _show_datasets(chain, run_shard(chain, make_progress(), address, debug), as_json)


def _show_estimates(chain: ChainRecipe, as_json: bool) -> None:
    estimates = estimate_all(chain)
    result = {"workspace": chain.workspace, "estimates": {name: cost.as_json() for name, cost in estimates}}
    print_result(as_json, result, lambda: print_text("\n".join(f"{name}: {cost}" for name, cost in estimates)))


def _show_datasets(chain: ChainRecipe, cards: list[DatasetCard], as_json: bool) -> None:
    result = {"workspace": chain.workspace, "datasets": [_card_json(card) for card in cards]}
    print_result(as_json, result, lambda: print_table(chain.workspace, _COLUMNS, map(_card_row, cards)))


def _card_json(card: DatasetCard) -> dict[str, Any]:
    fields = {"name", "digest", "num_input", "num_samples", "num_rejected", "num_duplicates", "num_shards", "num_bytes"}
    return card.model_dump(include=fields)


def _card_row(card: DatasetCard) -> tuple[str, ...]:
    return (
        card.name,
        f"{card.num_input:,}",
        f"{card.num_samples:,}",
        f"{card.num_rejected:,}",
        f"{card.num_duplicates:,}",
        f"{card.num_shards:,}",
        card.digest[:16],
    )


@dataclass(frozen=True)
class ListedStage:
    """A stage of the recipe with what its sources hold; *is_remote*: some of them are read from a bucket."""

    stage: ShardStage
    corpus: Corpus
    is_remote: bool


@dataclass(frozen=True)
class _DatasetPart:
    """One dataset that a stage makes: the complete corpus (*part* is ""), or a part of its split."""

    part: str
    name: str
    target: Store
    identity: DatasetFingerprint
    existing: DatasetCard | None


def run_shard(recipe: ChainRecipe, progress: Progress, address: str | None, debug: bool) -> list[DatasetCard]:
    """List every source first, so that a missing one is refused before a cluster starts; then make the datasets.

    Datasets that exist already are digested, and damaged shards of them are made again.
    """
    listed = list_sources(recipe)
    with connected(address, debug):
        return shard_connected(recipe, listed, progress, check_existing=True)


def list_sources(recipe: ChainRecipe, embedded: Store | None = None) -> list[ListedStage]:
    """Each stage of the recipe with its corpus. Raises InputError, and StoreAccessError for the workspace.

    An embedded corpus is copied to *embedded*, else into the workspace.
    """
    workspace = open_store(recipe.workspace, recipe.stores)
    workspace.check_writable()
    _check_against(recipe, workspace)
    return [_list(stage, recipe, embedded or workspace) for stage in recipe.shard]


def _check_against(recipe: ChainRecipe, workspace: Store) -> None:
    """Raise InputError for an evaluation set that neither exists nor is made by an earlier stage of the recipe."""
    earlier: set[str] = set()
    for stage in recipe.shard:
        for name in stage.duplicates.against:
            if name not in earlier:
                read_dataset_card(workspace, name)
        earlier |= set(stage.dataset_names().values())


def _list(stage: ShardStage, recipe: ChainRecipe, embedded: Store) -> ListedStage:
    originals = stage.sources()
    sources = [source.model_copy(update={"source": resolve_source(source.source, embedded)}) for source in originals]
    corpus = open_corpus(sources, recipe.stores, classes=stage.classes or None)
    # an embedded corpus is copied, and the workers read the copy in the workspace
    pairs = zip(originals, sources, strict=True)
    uris = [original.source if original == source else recipe.workspace for original, source in pairs]
    return ListedStage(stage, corpus, any(uri.startswith("s3://") for uri in uris))


def estimate_all(recipe: ChainRecipe) -> list[tuple[str, Estimate]]:
    """What each stage of the recipe will cost on the CPUs of this machine. Nothing is written into the workspace."""
    with tempfile.TemporaryDirectory(prefix="vitpipe-estimate-") as folder:
        return [
            (listed.stage.name, _estimate(listed, recipe, os.cpu_count() or 1, probe=True))
            for listed in list_sources(recipe, embedded=open_store(folder))
        ]


def _estimate(listed: ListedStage, recipe: ChainRecipe, num_cpus: float, *, probe: bool) -> Estimate:
    workspace = open_store(recipe.workspace, recipe.stores)
    return estimate(listed.corpus, _shard_recipe(listed.stage), listed.is_remote, workspace, num_cpus, probe=probe)


def shard_connected(
    recipe: ChainRecipe, listed: list[ListedStage], progress: Progress, *, check_existing: bool = False
) -> list[DatasetCard]:
    """Make the datasets on the cluster that ray is connected to; *check_existing*: digest those that exist already."""
    require_cpus("shard", 1)
    return [card for stage in listed for card in _shard_stage(stage, recipe, progress, check_existing)]


def _shard_stage(
    listed: ListedStage, recipe: ChainRecipe, progress: Progress, check_existing: bool
) -> list[DatasetCard]:
    parts = _parts(listed, recipe)
    pending = [part for part in parts if not _is_complete(part, progress, check_existing)]
    if pending:
        progress.message(f"{listed.stage.name}: {_estimate(listed, recipe, cluster_cpus(), probe=False)}")
        try:
            _make(listed, recipe, pending, progress)
        except (FailedError, FileNotFoundError):
            if any(part.existing or find_existing(part.target, part.identity) is None for part in pending):
                raise
            progress.message(f"{listed.stage.name}: another writer was faster, and made the same")
    _clear_work(listed.stage, recipe)
    workspace = open_store(recipe.workspace, recipe.stores)
    return [read_dataset_card(workspace, part.name) for part in parts]


def _make(listed: ListedStage, recipe: ChainRecipe, pending: list[_DatasetPart], progress: Progress) -> None:
    # Imported here: these bring ray along, which a refused recipe does without.
    from pipeline.corpus.ray_executor import on_cluster
    from pipeline.shard.stage import ShardRequest, build_dataset

    stage, shard_recipe = listed.stage, _shard_recipe(listed.stage)
    work = _work_of(stage, recipe)
    entries = listed.corpus.entries
    count = num_shards(entries.num_rows, total_bytes(entries), shard_recipe)
    for part in pending:
        if part.existing is None:
            take_lease(part.target, part.identity)
    scanner = Scanner(work, on_cluster(), progress)
    prepared = prepare(listed.corpus, _prepare_settings(stage, recipe), scanner, num_shards=count)
    for part in pending:
        request = ShardRequest(part.name, prepared[part.part], shard_recipe, part.target, part.identity)
        build_dataset(request, progress, part.existing)


def _work_of(stage: ShardStage, recipe: ChainRecipe) -> Store:
    return open_store(f"{recipe.workspace}/{dataset_prefix(stage.name)}/{WORK}", recipe.stores)


def _clear_work(stage: ShardStage, recipe: ChainRecipe) -> None:
    """Remove what the parts of a split share and none of them owns; also where an earlier attempt left it."""
    work = _work_of(stage, recipe)
    for info in list(work.list()):
        work.delete(info.key)
    work.sweep()
    work.prune()


def _parts(listed: ListedStage, recipe: ChainRecipe) -> list[_DatasetPart]:
    stage, shard_recipe = listed.stage, _shard_recipe(listed.stage)
    names = stage.dataset_names()
    parts = []
    for part, provenance in _prepare_settings(stage, recipe).provenance_by_part().items():
        target = open_store(f"{recipe.workspace}/{dataset_prefix(names[part])}", recipe.stores)
        identity = fingerprint_dataset(listed.corpus, shard_recipe, provenance)
        parts.append(_DatasetPart(part, names[part], target, identity, find_existing(target, identity)))
    return parts


def _prepare_settings(stage: ShardStage, recipe: ChainRecipe) -> PrepareSettings:
    return PrepareSettings(stage.duplicates, stage.split, open_store(recipe.workspace, recipe.stores))


def _is_complete(part: _DatasetPart, progress: Progress, check_existing: bool) -> bool:
    """True when the dataset exists, undamaged; with *check_existing* damage is looked for, and cleared."""
    if part.existing is None:
        return False
    if check_existing:
        # Imported here: it brings ray along.
        from pipeline.shard.stage import clear_damage, find_damage

        problems = find_damage(part.target, part.existing, progress)
        if problems:
            progress.message(f"{part.name}: making again what is damaged: {'; '.join(problems[:3])}")
            clear_damage(part.target, problems)
            return False
    sweep(part.target, read_shards(part.target, part.existing))  # an attempt may have died between card and sweep
    progress.message(
        f"dataset {part.name} is there already: {part.existing.num_samples} samples, digest {part.existing.digest[:12]}"
    )
    return True


def _shard_recipe(stage: ShardStage) -> ShardRecipe:
    return ShardRecipe.model_validate(stage.model_dump(include=set(ShardRecipe.model_fields)))


if __name__ == "__main__":
    main(shard)
