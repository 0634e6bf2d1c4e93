"""What a pretraining learns to do. No torch here, since recipes are read without it.

::

    recipe.py          the recipe of each objective: its settings, the labels that it needs, its FLOPs; no torch
    objective.py       what an objective is; the registry, and build_objective
    classification.py  softmax over one class; a sigmoid for each of many
    masked_patches.py  masked patch prediction (ViT B.1.2)

README.md shows how to add one.
"""
