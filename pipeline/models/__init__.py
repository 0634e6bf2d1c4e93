"""The Vision Transformer: plain modules, no training and no distribution in here.

::

    config.py      ViTConfig, and the named sizes with their source
    layers.py      patch embedding, positions and their resampling, MLP, stochastic depth, the block
    attention.py   multi-head self-attention with separately initialised q, k, v
    vit.py         the network: features by pooling, logits by the head
    cost.py        parameters, FLOPs and memory from the configuration alone
    registry.py    the families: config -> network, by the config's ``family``
    weights.py     model.safetensors: pickle-free and self-describing
    convert/       weights in and out: official npz, timm, Hugging Face
"""
