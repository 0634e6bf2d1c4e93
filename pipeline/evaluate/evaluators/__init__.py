"""Evaluators: each turns a planned evaluation into outcomes, what it chose, and artefacts. See README.md to add one.

::

    registry.py        evaluator -> run, and the stored features it reads; one row each
    probe.py           choose on validation, refit, test: what the probes of stored features share
    linear.py          linear probe; logistic.py: its L-BFGS solver
    sgd.py             sweep of linear heads trained by SGD
    knn.py             weighted k-NN
    ridge.py           ridge regression from streamed sums
    fewshot.py         ridge regression on a few samples per class
    finetune.py        fine-tuning: a sweep of learning rates, then several trainings
    classify.py        the network's own head
    inspect_model.py   pictures of the network
"""
