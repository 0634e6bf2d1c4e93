"""From a corpus to WebDataset shards.

::

    recipe.py       ShardRecipe
    plan.py         which entry goes into which shard, in which order (pure)
    tar.py          the bytes of a shard
    write.py        one shard: read, check, write, index
    spread.py       Ray Data runs the plan, one row per shard (the only module here that imports ray)
    commit.py       the tables and, last, the card
    verify.py       is what the card says what is stored
    interchange.py  does stock webdataset read the same samples
    build.py        the stage: corpus + recipe -> dataset card
"""
