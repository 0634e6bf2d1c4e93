"""From a dataset card to batches: exact, elastic, resumable.

::

    recipe.py    StreamRecipe: batch, partitions, window, augmentation
    order.py     which sample stands at a position of the global order (pure)
    cache.py     a shard as a local file: in place, or fetched once per node and verified
    dataset.py   a dataset's card, indexes and samples, read by offset with header and digest checked
    augment.py   random crop and flip, drawn from (seed, epoch, sample) alone
    randaugment.py  RandAugment's 16 operations
    mixup.py     the coefficient of a step, and each sample's partner
    labels.py    what a batch says of each sample's labels: one, many, none
    batch.py     one rank's part of a global batch, and what takes the place of a damaged sample
    workers.py   loader processes: who builds what, who died, who hangs (worker_process.py: one of them, seen from the
                 rank; worker_child.py: its program; worker_page.py, worker_words.py: what the two share and say)
    loader.py    the batches of one rank, from a stream position on
    audit.py     the log of what was handed out (audit_check.py: the proof from it)
    passes.py    every sample once, in order, for evaluation
"""
