"""Small real corpora that need no network.

corpora.py             embedded://NAME/SPLIT: Fashion-MNIST, which is stored here, and scikit-learn's digits
make_fashion_mnist.py  how the two parquet files in fashion_mnist/ were made
fashion_mnist/         these files, their licence and their description
"""
