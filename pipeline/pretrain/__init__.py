"""The assembly of a pretraining from its recipe.

::

    recipe.py       PretrainRecipe, and which of its fields may change between attempts
    objectives/     softmax, sigmoid, masked patch prediction
    data.py         the dataset, or the mixture, that it is trained on
    run.py          run.json: create-only, refused when the fingerprint differs
    worker.py       what each rank does
    stage.py        the stage: checks, launch, progress
"""
