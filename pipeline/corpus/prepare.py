"""The steps between a listed corpus and its shards: scan, duplicates, split. Runs only those that the recipe needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.base.store.protocol import Store
from pipeline.corpus.dedup import needed_depth, remove_duplicates
from pipeline.corpus.recipe import DuplicatesRecipe, SplitRecipe
from pipeline.corpus.scan import Scanner
from pipeline.corpus.sources.readers import RangeReader
from pipeline.corpus.splits import split, split_provenance
from pipeline.records.corpus import Corpus
from pipeline.records.dataset import read_dataset_card

_FEW_SHARDS = 2  # that many passes over a source that is read in order cost no more than copying it


@dataclass(frozen=True)
class PrepareSettings:
    """What is done to a corpus before it is sharded. *workspace* holds the evaluation sets that are named."""

    duplicates: DuplicatesRecipe
    split: SplitRecipe
    workspace: Store

    def provenance_by_part(self) -> dict[str, dict[str, Any]]:
        """What ``prepare`` will add to ``made_of``, by part; "" when nothing is split. Reads nothing but cards.

        Raises InputError when an evaluation set is not there.
        """
        provenance: dict[str, Any] = {}
        if needed_depth(self.duplicates) != "bytes":
            against = {name: read_dataset_card(self.workspace, name).digest for name in self.duplicates.against}
            provenance["duplicates"] = self.duplicates.model_dump(mode="json") | {"against": against}
        if not self.split.parts:
            return {"": provenance}
        return {part: provenance | {"split": split_provenance(self.split, part)} for part in sorted(self.split.parts)}


def prepare(corpus: Corpus, settings: PrepareSettings, scanner: Scanner, num_shards: int) -> dict[str, Corpus]:
    """The corpora to shard, by part; {"": ...} when nothing is split.

    A corpus that has to be read in order, and would be read by more than a few of *num_shards*, is copied into
    ``scanner.work`` on the way: the corpora then read from there. Raises InputError when a part would be empty or an
    evaluation set is missing, DamageError when one is damaged.
    """
    provenance = next(iter(settings.provenance_by_part().values()))
    depth = needed_depth(settings.duplicates)
    spill = not corpus.random_access and num_shards > _FEW_SHARDS
    if depth != "bytes" or spill:
        scanned = scanner.scan(corpus, depth, spill=spill)
        if spill:
            corpus = replace(corpus, reader=RangeReader(scanner.work), random_access=True)
        corpus = remove_duplicates(corpus, scanned, settings.duplicates, settings.workspace, scanner)
    if "duplicates" in provenance:
        corpus = replace(corpus, made_of=corpus.made_of | {"duplicates": provenance["duplicates"]})
    if not settings.split.parts:
        return {"": corpus}
    return split(corpus, settings.split, scanner.progress)
