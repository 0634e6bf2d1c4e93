"""The assembly of a pretraining from its recipe.

::

    recipe.py       PretrainRecipe, and which of its fields may change between attempts
    objectives/     softmax, sigmoid, masked patch prediction
    data.py         the dataset, or the mixture, that it is trained on
    run.py          run.json: create-only, refused when the fingerprint differs
    lineage.py      forks (--from) and extensions (--extend)
    initial.py      weights from elsewhere that it begins with (init)
    network.py      the network as a run begins with it
    audit.py        the audit, with a store that may refuse it
    rank.py         one attempt of one rank, put together
    worker.py       what Ray Train calls: the rank, its log, pulse and signals; how it ended
    stage.py        the stage: checks, launch; follow.py: its progress
"""
