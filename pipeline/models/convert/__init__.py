"""Weights in and out: the same function under foreign tensor names and layouts.

::

    foreign_file.py  read npz, safetensors and torch files; architecture from tensor names and shapes
    tensor_map.py    tables "own tensor <-> foreign tensors"; another normalisation of pixels, folded in
    npz.py           vision_transformer and AugReg, and big_vision
    timm.py          timm VisionTransformer
    hf.py            transformers ViTForImageClassification and ViTModel
"""
