"""stage: a verified, resumable copy of a corpus into a store that is ours.

recipe.py     typed settings: what is copied, how fast
plan.py       list_source: the objects to copy, and those that cannot be copied by their name
estimate.py   cost before it starts (dry run)
copier.py     Copier: one object, pinned and verified, or rejected
transfer.py   Transfer: many objects at once
journal.py    what is copied already, so that a killed stager goes on
manifest.py   the manifest and its table; the commit, and the folder's layout
stage.py      stage_corpus: all of it in order, the manifest last
verify.py     is stored what the manifest says
cleanup.py    leftovers of copies
"""

from pipeline.corpus.staging.estimate import StageEstimate, estimate_stage
from pipeline.corpus.staging.manifest import DATA, MANIFEST, StageManifest, corpus_prefix
from pipeline.corpus.staging.plan import open_source
from pipeline.corpus.staging.recipe import StageRecipe
from pipeline.corpus.staging.stage import stage_corpus
from pipeline.corpus.staging.verify import verify_staged

__all__ = [
    "DATA",
    "MANIFEST",
    "StageEstimate",
    "StageManifest",
    "StageRecipe",
    "corpus_prefix",
    "estimate_stage",
    "open_source",
    "stage_corpus",
    "verify_staged",
]
