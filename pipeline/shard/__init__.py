"""From a corpus to a dataset: WebDataset tars with an index each, and a card that is written last.

recipe.py     what fixes the bytes               identity.py   what a dataset is made of, before it is made
plan.py       entries -> shards (pure)           write.py      one shard: read, check, append, index
tar.py        the bytes of a tar                 statistics.py integer sums over samples
spread.py     Ray Data runs the plan             commit.py     tables, card, sweep
build.py      all of it, resumable               repair.py     damaged shards made again
verify.py     is what the card says stored?      interchange.py stock readers, DALI's index
"""
