"""From images anywhere to a listing of entries that can be sharded.

listing.py           open_corpus: sources -> one listing
sources/             the registry of sources, one file per kind
class_table.py       class tables from files
labels.py            texts of labels -> numbers of the class table
recipe.py            sources, duplicates, splits: typed settings
prepare.py           scan -> dedup -> split: the steps between a listing and its shards
scan.py              digests and rejects of a whole listing
worker.py            ScanChunk: what a worker does with a chunk
ray_executor.py      the one door to ray
dedup.py             which images are left out: duplicates, decontamination
exact_duplicates.py  equal digests, on disk
splits.py            parts by the keys of the images
staging/             a verified copy of a corpus into a store of ours
embedded/            small real corpora that need no network
"""

from pipeline.corpus.listing import open_corpus

__all__ = ["open_corpus"]
