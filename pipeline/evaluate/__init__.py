"""Evaluation of every checkpoint: what is due is a pure function, Ray does the work, the ledger remembers.

::

    suite.py      what to judge on: tasks, and a list of evaluators with settings
    due.py        checkpoints x suite -> evaluations, and which of them are not recorded yet (pure)
    ledger.py     claims that expire, results that are create-only; ledger_view.py makes a value of a listing
    subject.py    what is judged: the weights of a checkpoint, imported ones, or raw pixels; networks.py: their networks
    imported.py   others' weights, taken into the workspace under a name
    features.py   features once per (weights, dataset), stored part by part, shared by every probe
    probe/        linear, sgd, knn, fewshot, ridge: solvers over stored features
    transfer/     fine-tuning, through the one training loop
    inspect/      pictures of a network: filters, positions, predictions
    metrics/      values and intervals from per-sample outcomes
    compare.py    is B better than A, and with what probability; significance.py has the tests
    pairing.py    which results of two weights can be compared, which cannot, and why
    split.py      the parts of training, as types: test data cannot choose
    evaluators.py the table: name -> function
    spread.py     a pool of Ray actors (the only module here that imports ray)
    prepare.py    what evaluations share is made first
    perform.py    one evaluation: computed, stored, recorded
    scheduler/    claims, starts, retries, watches, until nothing is left
    stage.py      the stage
    leftovers.py  what nothing refers to any more
"""
