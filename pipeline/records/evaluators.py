"""The evaluators by name: what evaluation, report and commands all have to know of each, one row each.

The program of an evaluator is in ``evaluate/evaluators/``, its settings in ``evaluate/recipe.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

HEADLINES = ("top1", "mAP")  # what an evaluation is judged by: of samples with one label, and with several


@dataclass(frozen=True)
class EvaluatorInfo:
    """One evaluator.

    - *title*: its name in tables and on the page; *variant*: its name with some settings, ``{shots}-shot``.
    - *protocol_version*: part of the id of every evaluation. It is raised when the evaluator computes or records
      something else, so that old results are not taken for the same.
    - *headlines*: the metrics it is judged by, each where it is recorded; none for one that records no scores. Such an
      inspection has no baselines, since there is nothing to hold against them.
    - *is_probe*: it reads stored features, and ``vitpipe probe`` offers it; *is_default*: it is among the probes of a
      task for which nobody names any.
    - *needs_network*: raw pixels cannot be judged by it, since they have neither head nor filters.
    - *is_training*: it trains the whole network, so it takes longest and starts first.
    - *protocol_input*: how the setting ``transform: protocol`` makes its input: the short side resized to the crop, or
      both sides resized to more than the crop.
    """

    title: str
    protocol_version: int
    variant: str = ""
    headlines: tuple[str, ...] = HEADLINES
    is_probe: bool = False
    is_default: bool = False
    needs_network: bool = False
    is_training: bool = False
    protocol_input: Literal["short", "square"] = "short"

    @property
    def has_scores(self) -> bool:
        """False for an inspection: it records pictures and no metric."""
        return bool(self.headlines)


# In the order in which tables and the page list them.
EVALUATORS = {
    "classify": EvaluatorInfo("Own head", 2, needs_network=True),
    "linear": EvaluatorInfo("Linear probe", 4, is_probe=True, is_default=True),
    "sgd": EvaluatorInfo("Linear probe (SGD)", 2, is_probe=True),
    "knn": EvaluatorInfo("k-NN", 2, is_probe=True, is_default=True),
    "ridge": EvaluatorInfo("Ridge regression", 2, is_probe=True),
    "fewshot": EvaluatorInfo(
        "Few-shot", 3, variant="{shots}-shot", is_probe=True, is_default=True, protocol_input="square"
    ),
    "finetune": EvaluatorInfo("Fine-tuning", 4, is_training=True),
    "inspect": EvaluatorInfo("Inspection", 1, headlines=(), needs_network=True),
}


def evaluator_title(evaluator: str) -> str:
    """``Linear probe``; the name itself for an evaluator that this version does not know."""
    return EVALUATORS[evaluator].title if evaluator in EVALUATORS else evaluator


def variant_name(evaluator: str, settings: Mapping[str, Any]) -> str | None:
    """``5-shot``: the name of the evaluator with these *settings*; None where it has none of its own."""
    pattern = EVALUATORS[evaluator].variant if evaluator in EVALUATORS else ""
    try:
        return pattern.format_map(settings) or None
    except KeyError:  # recorded before there was such a setting
        return None


def is_headline(evaluator: str, metric: str) -> bool:
    """True for what an evaluation by *evaluator* is judged by."""
    return metric in (EVALUATORS[evaluator].headlines if evaluator in EVALUATORS else HEADLINES)


def has_scores(evaluator: str) -> bool:
    """False for an inspection; an evaluator that this version does not know has scores."""
    return evaluator not in EVALUATORS or EVALUATORS[evaluator].has_scores


def probe_names() -> tuple[str, ...]:
    """The evaluators that ``vitpipe probe`` offers."""
    return tuple(name for name, info in EVALUATORS.items() if info.is_probe)


def default_probes() -> tuple[str, ...]:
    """The evaluators of a task for which nobody names any."""
    return tuple(name for name, info in EVALUATORS.items() if info.is_default)
