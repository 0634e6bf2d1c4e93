"""What a pretraining learns to do. No torch here, since recipes are read without it.

::

    recipe.py          the recipe of each objective, and which labels it needs
    make.py            make_objective: the objective of a recipe
    objective.py       what an objective is
    classification.py  softmax over one class; a sigmoid for each of many
    masked_patches.py  masked patch prediction (ViT B.1.2)
    corruption.py      which patches are corrupted and how
    cost.py            the FLOPs of an image, with the network
"""
