"""The protocol of an evaluation in a few words: what is always worth telling, and what is not the default."""

from __future__ import annotations

from typing import Any

from pipeline.evaluate.suite import SETTINGS, Task
from pipeline.records.score import EvaluationKey

# told even where they are the default
_ALWAYS = {
    "linear": ("l2",),
    "sgd": ("steps", "learning_rates"),
    "knn": ("k",),
    "ridge": ("l2",),
    "fewshot": ("shots", "l2"),
    "finetune": ("steps", "learning_rates", "runs"),
}
_LISTED = 4  # longer lists are told by their ends
_MISSING = object()


def settings_in_short(key: EvaluationKey) -> str:
    """``shots 10, l2 1024``; with the version of the protocol where it is not the first."""
    kind = SETTINGS.get(key.evaluator)
    defaults = kind().model_dump(mode="json") if kind else {}
    defaults |= {name: field.default for name, field in Task.model_fields.items() if not field.is_required()}
    always = _ALWAYS.get(key.evaluator, ())
    names = [name for name in always if name in key.settings]
    names += [name for name in key.settings if name not in always and _differs(key.settings, defaults, name)]
    words = [f"{name} {_short(key.settings[name])}" for name in names]
    return ", ".join([*words, *([f"protocol {key.protocol_version}"] if key.protocol_version > 1 else [])])


def _differs(settings: dict[str, Any], defaults: dict[str, Any], name: str) -> bool:
    return bool(settings[name] != defaults.get(name, _MISSING))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_short(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        shown = [_short(one) for one in value]
        return "/".join(shown) if len(shown) <= _LISTED else f"{len(shown)} from {shown[0]} to {shown[-1]}"
    return f"{value:g}" if isinstance(value, float) else str(value)
