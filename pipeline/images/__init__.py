"""The one decoding contract: which formats, which conversion to RGB, which resize. Used wherever pixels are read.

::

    decode.py                bytes -> RGB, header parsing, typed rejections
    transforms.py            resize, crop, EvaluationTransform
    check.py                 check_image: full decode, re-encode, pixel digest, channel sums
    sandbox.py               Sandbox: images checked in a child process
    sandbox_worker.py        the program of that child, and its messages
    preprocessor_config.py   the transform as transformers' and timm's configs write it
"""
