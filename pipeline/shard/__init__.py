"""From a corpus to a dataset: WebDataset tars with an index each, and a card that is written last.

::

    recipe.py         what fixes the bytes of a dataset      plan.py           entries -> shards (pure)
    estimate.py       bytes, requests and time beforehand    stage.py          shard a corpus, resumable; repair
    ray_executor.py   Ray Data runs the plan                 worker.py         what a worker does with a row of it
    writer.py         one shard: check, append, index        index.py          the index beside it, its statistics
    commit.py         fingerprint, lease, tables, card last  cleanup.py        abandoned leases, unfinished datasets
    verify.py         is stored what the card says           describe.py       counts, balance, rejects as values
    contact_sheet.py  random samples as a PNG                dali.py           DALI's index files
"""
