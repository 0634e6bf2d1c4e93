"""Runs that were evaluated, or are to be: small drawn networks for tests of the scheduler, results for tests of scores.

Nothing is trained. Cards keep every contract; only the files of ranks are not made. ``make_workspace`` stores networks
that a scheduler can evaluate; ``put_run`` and ``put_result`` store results and per-sample outcomes with known answers,
of weights that do not exist: test sample i of a task has class i modulo 3; an answer is right or the next class.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.config import build
from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.retry import RetryPolicy
from pipeline.base.store import Store
from pipeline.evaluate.metrics import Outcomes, mean_ap, of_probabilities, of_scores, pack_outcomes, top1
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.worker import record_result
from pipeline.models.vit import ViT
from pipeline.models.weights import ModelDescription, pack_weights
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
from pipeline.records.score import OUTCOMES, EvaluationKey, EvaluationResult, Metric, file_key, list_results
from tests.support.datasets import make_dataset
from tests.support.stored_models import TRANSFORM, tiny

RUN = "made"
_NUM_CLASSES = 3  # of put_result
_BATCH_SIZE = 4


# -- runs and checkpoints


def make_workspace(store: Store, steps: list[int], last: int | None = None) -> None:
    """Datasets "train" and "test", and run RUN with checkpoints at *steps*; it is to have *last* steps in the end."""
    make_dataset(store, "train", num_samples=60, size=8)
    make_dataset(store, "test", num_samples=30, size=8, seed=1)
    _put_run_card(store, RUN, {"steps": last if last is not None else max(steps), "transform": TRANSFORM})
    for step in steps:
        put_checkpoint(store, step)


def put_checkpoint(store: Store, step: int, damaged: bool = False) -> None:
    """A checkpoint of RUN, the card last; *damaged*: its weights are shorter than its card says."""
    config = tiny()
    names = tuple(f"class-{label}" for label in range(config.num_classes))
    data = pack_weights(ViT(config, seed=step).state_dict(), ModelDescription(config, TRANSFORM, names))
    weights = StoredFile(name="0001/model.safetensors", num_bytes=len(data), sha256=sha256_hex(data))
    store.put(f"{step_prefix(RUN, step)}/{weights.name}", data[:-1] if damaged else data)
    store.put(checkpoint_card_key(RUN, step), _checkpoint_card(RUN, step, weights).to_json())


def remove_checkpoint(store: Store, step: int) -> None:
    """As retention does: the card first."""
    store.delete(checkpoint_card_key(RUN, step))
    store.delete(f"{step_prefix(RUN, step)}/0001/model.safetensors")


def put_run(store: Store, name: str, steps: Sequence[int], retired: Sequence[int] = ()) -> None:
    """The card of a run, and those of its checkpoints; *retired* are steps that retention removed."""
    _put_run_card(store, name, {"steps": max(steps)})
    for step in (*steps, *retired):
        weights = StoredFile(name="model.safetensors", num_bytes=1, sha256=weights_of(name, step))
        key = f"{step_prefix(name, step)}/{RETIRED}" if step in retired else checkpoint_card_key(name, step)
        store.put(key, _checkpoint_card(name, step, weights).to_json())


def weights_of(run: str, step: int) -> str:
    """The digest of the made-up weights of a checkpoint."""
    return sha256_hex(f"{run}@{step}".encode())


def _put_run_card(store: Store, name: str, recipe: dict[str, Any]) -> None:
    card = RunCard(
        name=name,
        fingerprint=fingerprint(recipe),
        fingerprinted=recipe,
        recipe=recipe,
        dataset_name="train",
        dataset_digest=sha256_hex(b"dataset"),
        order=OrderParameters(seed=0, partitions=4, window=16, batch_size=_BATCH_SIZE),
        code_version="test",
    )
    store.put(f"{run_prefix(name)}/run.json", card.to_json())


def _checkpoint_card(run: str, step: int, weights: StoredFile) -> CheckpointCard:
    return CheckpointCard(
        run=run,
        step=step,
        position=step * _BATCH_SIZE,
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


# -- suites


def suite_tree(num_seeds: int = 3, **changes: Any) -> dict[str, Any]:
    """A suite of one k-NN and *num_seeds* few-shot evaluations for each checkpoint, as it stands in YAML."""
    return {
        "tasks": {"task": {"train": "train", "test": "test", "validation": 0.3}},
        "suite": [
            {"evaluator": "knn", "tasks": ["task"], "settings": {"k": [3, 5]}},
            {"evaluator": "fewshot", "tasks": ["task"], "seeds": list(range(num_seeds)), "settings": {"shots": 2}},
        ],
        "baselines": False,
        "max_parallel": 2,
        "cpus": 0.5,
    } | changes


def suite_recipe(num_seeds: int = 3, **changes: Any) -> EvaluateRecipe:
    """The same, checked."""
    return build(EvaluateRecipe, suite_tree(num_seeds, **changes))


def put_suite(path: Path, num_seeds: int = 3, **changes: Any) -> Path:
    """The same as a file."""
    path.write_text(json.dumps(suite_tree(num_seeds, **changes)))
    return path


# -- results


def recorded_results(store: Store) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is recorded, by id: the evaluation, and all of its result that two calm runs agree in, files by content.

    Raises when a file is not what the result lists.
    """
    found = {}
    for result in list_results(store):
        for name, digest in result.files.items():
            assert sha256_hex(store.read(file_key(result.id, name, digest))) == digest, name
        tree = result.model_dump(mode="json", exclude={"seconds"})
        found[result.id] = (f"{result.key.evaluator} {result.key.seed}", tree)
    return found


def recorded_files(store: Store) -> list[str]:
    """The keys of all results, of any generation."""
    return [info.key for info in store.list("evaluations/") if info.key.rpartition("/")[2].startswith("result")]


def pattern(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Which samples A and B have right, so that they differ in exactly these numbers."""
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


def outcomes_of(right: Sequence[bool], *, calibrated: bool = True, prefix: str = "k") -> Outcomes:
    """Outcomes that are right where *right* says so, always with probability 0.7."""
    labels = np.arange(len(right)) % _NUM_CLASSES
    predicted = np.where(np.array(right), labels, (labels + 1) % _NUM_CLASSES)
    shares = np.full((len(right), _NUM_CLASSES), 0.15, np.float32)
    shares[np.arange(len(right)), predicted] = 0.7
    keys = tuple(f"{prefix}{row:04d}" for row in range(len(right)))
    return of_probabilities(keys, labels, shares) if calibrated else of_scores(keys, labels, shares)


def put_result(
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
    assert record_result(store, result, files, 0, RetryPolicy(0))
    return result
