"""What all ranks agree on at each step, at the price of a message that nobody waits for.

Each rank gives a few numbers at the end of a step and learns, at the end of the next, the largest that any rank gave:
by then every rank has been here, so the answer is there. So all ranks decide alike, one step late.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from pipeline.train.collective import new_group


class Agreement:
    """Exchanges *count* numbers. Every rank makes it, and makes the same calls, at the same places.

    *patience_seconds*: see ``new_group``.
    """

    def __init__(self, count: int, patience_seconds: float = 0.0) -> None:
        self._group = new_group(patience_seconds)
        self._work: dist.Work | None = None
        self._values = torch.zeros(count, dtype=torch.float64)
        self._begun = False

    def exchange(self, values: Sequence[float]) -> list[float] | None:
        """The largest of all ranks' numbers of the call before; None at the first call. Gives *values*."""
        before = self._take()
        self._values.copy_(torch.tensor(values, dtype=torch.float64))
        self._begun = True
        if self._group is not None:
            self._work = dist.all_reduce(self._values, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return before

    def finish(self) -> list[float] | None:
        """The answer to the last call. Waits for the slowest rank."""
        return self._take()

    def _take(self) -> list[float] | None:
        if not self._begun:
            return None
        if self._work is not None:
            self._work.wait()
            self._work = None
        self._begun = False
        return self._values.tolist()
