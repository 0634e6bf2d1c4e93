"""stage: a verified, resumable copy of a corpus into a store that is ours.

recipe.py     what is taken, how fast, how patiently
listing.py    source URI -> listed objects, and those that cannot be copied by their name
estimate.py   what a copy would take (dry run)
copy.py       one object: pinned, compared with what its store says of it, read again once, or rejected
transfer.py   many objects at once
journal.py    what is copied already, so that a killed stager goes on
manifest.py   the records below, and the folder's layout
build.py      all of it in order, the manifest last
verify.py     is what the manifest says what is stored?
"""

from pipeline.corpus.staging.estimate import Estimate, estimate_stage
from pipeline.corpus.staging.manifest import DATA, MANIFEST, StageManifest, corpus_prefix
from pipeline.corpus.staging.plan import open_source
from pipeline.corpus.staging.recipe import StageRecipe
from pipeline.corpus.staging.stage import stage_corpus
from pipeline.corpus.staging.verify import verify_staged

__all__ = [
    "DATA",
    "MANIFEST",
    "Estimate",
    "StageManifest",
    "StageRecipe",
    "corpus_prefix",
    "estimate_stage",
    "open_source",
    "stage_corpus",
    "verify_staged",
]
