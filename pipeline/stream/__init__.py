"""From a dataset card to batches: exact, elastic, resumable.

::

    recipe.py    StreamRecipe: batch, partitions, window, augmentation
    order.py     which sample stands at a position of the global order (pure)
    cache.py     a shard as a local file: in place, or fetched once per node and verified
    dataset.py   a dataset's card, indexes and samples, read by offset with header and digest checked
    augment.py   random crop and flip, drawn from (seed, epoch, sample) alone
    loader.py    the batches of one rank, from a stream position on
    passes.py    every sample once, in order, for evaluation
"""
