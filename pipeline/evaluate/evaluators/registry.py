"""The table of evaluators: each turns a planned evaluation into outcomes, what it chose, and artefacts.

::

    task_data.py  the task: refused where it leaks, else its parts as types
    probing.py    linear, knn, fewshot, over stored features; ridge_probe.py and sgd_probe.py too
    transfer/     fine-tuning
    here          the network's own head, and pictures of it
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators.classify import classify
from pipeline.evaluate.evaluators.fewshot import fewshot
from pipeline.evaluate.evaluators.finetune import finetuned
from pipeline.evaluate.evaluators.inspect_model import inspect
from pipeline.evaluate.evaluators.knn import knn
from pipeline.evaluate.evaluators.linear import linear
from pipeline.evaluate.evaluators.ridge import ridge
from pipeline.evaluate.evaluators.sgd import sgd
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.plan import PlannedEvaluation

EVALUATORS: dict[str, Callable[[Store, PlannedEvaluation], EvalOutput]] = {
    "linear": linear,
    "sgd": sgd,
    "knn": knn,
    "ridge": ridge,
    "fewshot": fewshot,
    "finetune": finetuned,
    "classify": classify,
    "inspect": inspect,
}
SHARES_FEATURES = {"linear", "sgd", "knn", "ridge", "fewshot"}
