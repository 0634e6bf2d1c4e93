"""Evaluation of every checkpoint: what is due is a pure function, Ray does the work, the ledger remembers.

::

    recipe.py            tasks of a suite, its evaluators with their settings, their short description
    discovery.py         a run or imported weights -> planned evaluations; stored suites; EvaluationRequest
    plan.py              checkpoints x suite -> evaluations, their states, what is due and in what order (pure)
    changes.py           redo, retry, invalidate, cancel by name
    ledger.py            claims that expire, results that are create-only; the view of a listing
    work_queue.py        what starts next, shared features first
    scheduler.py         claims, starts, renews, retries, watches, until nothing is left; holds checkpoints
    worker.py            run_evaluation, run_feature_job: what a worker does
    ray_executor.py      a pool of Ray actors (the only module here that imports ray)
    stage.py             check, schedule, raise what failed
    cleanup.py           leftovers that nothing refers to any more

    model_ref.py         which weights are judged, with which input; model_loader.py makes networks of them
    imported_weights.py  weights from anywhere, stored in the workspace under a name
    interop.py           export to and import from the formats of others
    task_data.py         a task opened: its parts, typed; splits.py: train, validation and test as types
    leakage.py           no test image in the training dataset
    evaluators/          one file per evaluator: name -> run
    features/            features once per (weights, dataset), stored part by part, shared by every probe
    metrics/             values and intervals from per-sample outcomes
    finetuning/          fine-tuning, through the one training loop

    comparison.py        results of two models, paired and compared; significance.py: bootstrap, McNemar, Holm
    gate.py              may the candidate replace the baseline
"""
