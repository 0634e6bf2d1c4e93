"""Ray Train starts the ranks. The only module here that imports ray.

Ray only places and restarts processes: order, checkpoints and metrics are ours, in the workspace, since its own
report is a barrier and its checkpoints can be lost between an upload and the report.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

from pipeline.base.errors import FailedError, VitpipeError

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer


def launch(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    num_workers: int,
    resources: dict[str, float],
    max_failures: int,
) -> None:
    """Run *worker(config)* on *num_workers* ranks of one gloo group, restarting all when one dies.

    Raises the worker's own typed error, or FailedError when ranks died more than *max_failures* times.
    """
    with tempfile.TemporaryDirectory(prefix="vitpipe-train-") as scratch:
        trainer = TorchTrainer(
            worker,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(num_workers=num_workers, resources_per_worker=resources),
            torch_config=TorchConfig(backend="gloo"),
            run_config=ray.train.RunConfig(
                name="vitpipe",
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=max_failures),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise _typed(error) from error


def _typed(error: BaseException) -> VitpipeError:
    """The first typed error inside what Ray raised."""
    failures = getattr(error, "worker_failures", {})
    for inner in (*failures.values(), error, error.__cause__):
        for found in (inner, getattr(inner, "_base_exc", None), getattr(inner, "cause", None)):
            if isinstance(found, VitpipeError):
                return found
    first = next(iter(failures.values()), error)
    return FailedError(
        f"training failed: {type(first).__name__}: {(str(first).strip() or 'no message').splitlines()[-1][:300]}",
        "give the same command again to resume from the last checkpoint; --debug shows the traceback",
    )
