"""A run whose checkpoints are small drawn networks, and a suite of cheap evaluations: for tests of the scheduler.

Nothing is trained. Checkpoints have cards that keep every contract; only the files of ranks are not made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.base.config import build
from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.store import Store
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.models.vit import ViT
from pipeline.models.weights import ModelDescription, pack_weights
from pipeline.records.run import (
    CheckpointCard,
    OrderParameters,
    RunCard,
    StoredFile,
    checkpoint_card_key,
    run_prefix,
    step_prefix,
)
from pipeline.records.score import file_key, list_results
from tests.support.datasets import make_dataset
from tests.support.subjects import TRANSFORM, tiny

RUN = "made"


def make_workspace(store: Store, steps: list[int], last: int | None = None) -> None:
    """Datasets "train" and "test", and run RUN with checkpoints at *steps*; it is to have *last* steps in the end."""
    make_dataset(store, "train", num_samples=60, size=8)
    make_dataset(store, "test", num_samples=30, size=8, seed=1)
    recipe = {"steps": last if last is not None else max(steps), "transform": TRANSFORM}
    card = RunCard(
        name=RUN,
        fingerprint=fingerprint(recipe),
        fingerprinted=recipe,
        recipe=recipe,
        dataset_name="train",
        dataset_digest=sha256_hex(b"dataset"),
        order=OrderParameters(seed=0, partitions=4, window=16, batch_size=4),
        code_version="test",
    )
    store.put(f"{run_prefix(RUN)}/run.json", card.to_json())
    for step in steps:
        put_checkpoint(store, step)


def put_checkpoint(store: Store, step: int, damaged: bool = False) -> None:
    """A checkpoint of RUN, the card last; *damaged*: its weights are shorter than its card says."""
    config = tiny()
    names = tuple(f"class-{label}" for label in range(config.num_classes))
    data = pack_weights(ViT(config, seed=step).state_dict(), ModelDescription(config, TRANSFORM, names))
    weights = StoredFile(name="0001/model.safetensors", num_bytes=len(data), sha256=sha256_hex(data))
    card = CheckpointCard(
        run=RUN,
        step=step,
        position=step * 4,
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
    store.put(f"{step_prefix(RUN, step)}/{weights.name}", data[:-1] if damaged else data)
    store.put(checkpoint_card_key(RUN, step), card.to_json())


def remove_checkpoint(store: Store, step: int) -> None:
    """As retention does: the card first."""
    store.delete(checkpoint_card_key(RUN, step))
    store.delete(f"{step_prefix(RUN, step)}/0001/model.safetensors")


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


def findings(store: Store) -> dict[str, tuple[str, dict[str, Any]]]:
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
