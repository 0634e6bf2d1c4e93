"""The Vision Transformer: plain modules, no training and no distribution in here.

::

    config.py      ViTConfig, and the named sizes with their source
    embedding.py   patches and positions
    attention.py   multi-head self-attention with separately initialised q, k, v
    block.py       one transformer block, its MLP, stochastic depth
    vit.py         the network: features by pooling, logits by the head
    resample.py    position embeddings for another resolution
    cost.py        parameters, FLOPs and memory from the configuration alone
    weights.py     model.safetensors: pickle-free and self-describing
    convert/       weights in and out: official npz, timm, Hugging Face
"""
