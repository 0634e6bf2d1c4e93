"""The pretraining of a recipe: from what is checked before a rank starts to what each rank does.

::

    recipe.py           PretrainRecipe: which fields may change between attempts is marked on them
    objectives/         softmax, sigmoid, masked patch prediction
    plan.py             the datasets, and every check: recipe and data -> TrainingPlan
    estimate.py         memory, FLOPs, time and checkpoints, before a node is rented
    run_card.py         run.json: create-only, refused when the fingerprint differs; forks and extensions
    initial_weights.py  the network as a run begins with it: drawn, or with weights of ``init``
    trainer.py          assemble: all that one attempt of one rank is made of; Trainer runs it
    worker.py           what Ray Train calls: the rank, its log, heartbeat and signals; how it ended
    stage.py            the stage: checks, launch, progress, how it ended
"""
