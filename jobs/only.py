"""Which evaluations a command is about."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipeline.records.score import EvaluationKey


@dataclass(frozen=True)
class Only:
    """Which evaluations are wanted; a task or an evaluator may be a pattern with ``*`` and ``?``. None: all."""

    task: str | None = None
    evaluator: str | None = None

    def wants(self, key: EvaluationKey) -> bool:
        """True for an evaluation that is asked for."""
        return fnmatchcase(key.task, self.task or "*") and fnmatchcase(key.evaluator, self.evaluator or "*")
