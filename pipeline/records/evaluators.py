"""What is due: a pure function of checkpoints, suite and ledger."""

from __future__ import annotations

# Raised when an evaluator computes or records something else, so that it is done again instead of taken for the same.
PROTOCOL_VERSIONS = {
    "linear": 4,
    "sgd": 2,
    "knn": 2,
    "ridge": 2,
    "fewshot": 3,
    "finetune": 4,
    "classify": 2,
    "inspect": 1,
}
INSPECT = "inspect"
EVALUATOR_NAMES = {
    "classify": "Own head",
    "linear": "Linear probe",
    "sgd": "Linear probe (SGD)",
    "knn": "k-NN",
    "ridge": "Ridge regression",
    "fewshot": "Few-shot",
    "finetune": "Fine-tuning",
}
HEADLINES = ("top1", "mAP")  # what an evaluation is judged by: of samples with one label, and with several
