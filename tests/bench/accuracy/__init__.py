"""The accuracy benchmark: all of Fashion-MNIST, from its files to a test accuracy, by the product's own chain.

::

    recipe.yaml   what is trained: at most 1.5 M parameters
    corpus.py     the files of Debian's package dataset-fashion-mnist as a corpus
    __main__.py   `make bench-accuracy`: three seeds, mean and standard deviation into BENCHMARKS.md
"""
