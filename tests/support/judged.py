"""Runs whose checkpoints were judged: results and per-sample outcomes with known answers, as evaluation records them.

Nothing is trained or computed. Test sample i of a task has class i modulo 3; an answer is right or the next class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.retry import RetryPolicy
from pipeline.base.store import Store
from pipeline.evaluate.metrics import Outcomes, mean_ap, of_probabilities, of_scores, pack_outcomes, top1
from pipeline.evaluate.worker import record
from pipeline.records.run import (
    RETIRED,
    CheckpointCard,
    OrderParameters,
    RunCard,
    StoredFile,
    checkpoint_card_key,
    run_prefix,
    step_prefix,
)
from pipeline.records.score import OUTCOMES, EvaluationKey, EvaluationResult, Metric

NUM_CLASSES = 3


def pattern(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Which samples A and B have right, so that they differ in exactly these numbers."""
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


def outcomes_of(right: Sequence[bool], *, calibrated: bool = True, prefix: str = "k") -> Outcomes:
    """Outcomes that are right where *right* says so, always with probability 0.7."""
    labels = np.arange(len(right)) % NUM_CLASSES
    said = np.where(np.array(right), labels, (labels + 1) % NUM_CLASSES)
    shares = np.full((len(right), NUM_CLASSES), 0.15, np.float32)
    shares[np.arange(len(right)), said] = 0.7
    keys = tuple(f"{prefix}{row:04d}" for row in range(len(right)))
    return of_probabilities(keys, labels, shares) if calibrated else of_scores(keys, labels, shares)


def put_run(store: Store, name: str, steps: Sequence[int], retired: Sequence[int] = ()) -> None:
    """The card of a run, and those of its checkpoints; *retired* are steps that retention removed."""
    recipe: dict[str, Any] = {"steps": max(steps)}
    card = RunCard(
        name=name,
        fingerprint=fingerprint(recipe),
        fingerprinted=recipe,
        recipe=recipe,
        dataset_name="none",
        dataset_digest=sha256_hex(b"none"),
        order=OrderParameters(seed=0, partitions=1, window=1, batch_size=1),
        code_version="test",
    )
    store.put(f"{run_prefix(name)}/run.json", card.to_json())
    for step in (*steps, *retired):
        weights = StoredFile(name="model.safetensors", num_bytes=1, sha256=weights_of(name, step))
        checkpoint = CheckpointCard(
            run=name,
            step=step,
            position=step,
            updates=step,
            attempt="0001",
            world_size=1,
            zero_stage=0,
            dtype="fp32",
            fingerprint="f",
            dataset_digest="d",
            code_version="test",
            files=(),
            weights=weights,
        )
        gone = f"{step_prefix(name, step)}/{RETIRED}"
        store.put(gone if step in retired else checkpoint_card_key(name, step), checkpoint.to_json())


def weights_of(run: str, step: int) -> str:
    """The digest of the made-up weights of a checkpoint."""
    return sha256_hex(f"{run}@{step}".encode())


def put_judged(
    store: Store,
    weights: str,
    evaluator: str,
    found: Sequence[bool] | Outcomes,
    *,
    task: str = "birds",
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    metrics: Sequence[Metric] = (),
    data: str = "",
) -> EvaluationResult:
    """Record a result of top-1 (mAP of several labels) and *metrics*, with its outcomes; *data*: other datasets than
    the task usually has."""
    outcomes = found if isinstance(found, Outcomes) else outcomes_of(found)
    headline = top1 if outcomes.targets is None else mean_ap
    key = EvaluationKey(
        weights_digest=weights,
        evaluator=evaluator,
        protocol_version=1,
        task=task,
        dataset_digests=tuple(sha256_hex(f"{task} {part} {data}".encode()) for part in ("train", "test")),
        transform={"size": 8},
        settings=settings or {},
        seed=seed,
    )
    files = {OUTCOMES: pack_outcomes(outcomes)}
    result = EvaluationResult(
        id=key.id,
        key=key,
        metrics=(headline(outcomes), *metrics),
        num_samples=len(outcomes.keys),
        chosen={},
        seconds=1.0,
        files={name: sha256_hex(content) for name, content in files.items()},
    )
    assert record(store, result, files, 0, RetryPolicy(0))
    return result
