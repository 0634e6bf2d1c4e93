"""Weights in and out: the same function under others' tensor names and layouts.

::

    files.py     read files of tensors without unpickling anything
    rows.py      tables "our tensor <-> theirs"; what is missing, extra or of another shape is refused by name
    found.py     the architecture, from tensor names and shapes
    blocks.py    the tables that timm and Hugging Face share
    npz.py       vision_transformer and AugReg, and big_vision
    timm.py      timm VisionTransformer
    hf.py        transformers ViTForImageClassification and ViTModel
    pixels.py    another normalisation of pixels, folded into the patch projection
"""
