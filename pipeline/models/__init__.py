"""The Vision Transformer: plain modules, no training and no distribution in here.

::

    config.py      ViTConfig, and the named sizes with their source
    embedding.py   patches and positions
    attention.py   multi-head self-attention with separately initialised q, k, v
    vit.py         the network: features by pooling, logits by the head
    weights.py     model.safetensors: pickle-free and self-describing
"""
