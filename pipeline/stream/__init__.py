"""From a dataset card to batches: exact, elastic, resumable.

::

    recipe.py           StreamRecipe, AugmentRecipe, LabelEncoder
    order.py            the global order (pure), point-wise permutations
    mixture.py          several datasets in one order
    shuffle_quality.py  how well an order shuffles
    index.py            ShardIndex, ShardTable
    dataset.py          DatasetReader: samples by offset, verified
    subset.py           SubsetReader
    cache.py            ShardCache: shards as open files
    disk_lru.py         DiskLru: the folder of the cache, its size and eviction
    prefetch.py         Prefetcher: shards before they are needed
    augment.py          crop, flip, RandAugment
    mixup.py            mixup
    batch.py            StreamPlan, BatchBuilder, BatchArrays, SlotLayout; no torch
    loader.py           StreamLoader (torch)
    loader_pool.py      BatchQueue, LoaderPool and its child processes
    loader_messages.py  what a rank and a loader process send each other; settings
    loader_worker.py    the program of a loader process
    eval_loader.py      every sample once, in order, padded
    audit.py            log of what each rank was handed out
    audit_check.py      proof of exactly once
    profiling.py        time of each step on real samples
    benchmark.py        stream bench: loader rate and bottleneck
"""
