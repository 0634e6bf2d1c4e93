"""A small made-up workspace that keeps every contract of the records, for tests of what only reads them.

NOTHING IN HERE WAS TRAINED OR MEASURED: losses, scores and artefacts are drawn from fixed formulas, in milliseconds and
without torch. It is a run ``tiny`` on dataset ``fashion-mnist`` in two attempts with checkpoints at steps 0, 100, 200
and 300, evaluated on tasks ``digits`` and ``fashion-mnist``; beside it stand results of another run, to be left out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from pipeline.base.digests import canonical_json, fingerprint, sha256_hex
from pipeline.base.journal import Journal
from pipeline.base.seeds import generator
from pipeline.base.store import Store, open_store
from pipeline.records.dataset import CARD, DatasetCard, dataset_prefix
from pipeline.records.run import (
    CheckpointCard,
    MetricsRow,
    OrderParameters,
    RunCard,
    StoredFile,
    checkpoint_card_key,
    run_prefix,
)
from pipeline.records.score import ARTEFACTS, PIXELS, EvaluationKey, EvaluationResult, Metric, file_key, result_key
from tests.support.statistics import plain_statistics

RUN, DATASET, DOWNSTREAM = "tiny", "fashion-mnist", "digits"
CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
STEPS = (0, 100, 200, 300)
BATCH = 256
RECIPE = {
    "model": {"name": "vit_tiny", "image_size": 28, "patch_size": 4, "width": 192, "depth": 6, "heads": 3},
    "data": {"dataset": DATASET, "window": 4096, "seed": 0},
    "optimizer": {"name": "adamw", "learning_rate": 0.001, "weight_decay": 0.05, "betas": [0.9, 0.999]},
    "train": {"steps": 300, "batch_size": BATCH, "warmup_steps": 30, "dtype": "bf16", "zero_stage": 1},
}

# (evaluator, task) -> (pixels, the value at each of STEPS); None where there is no such baseline
CURVES: dict[tuple[str, str], tuple[float | None, tuple[float, ...]]] = {
    ("classify", DATASET): (None, (0.098, 0.741, 0.812, 0.842)),
    ("linear", DATASET): (0.831, (0.742, 0.828, 0.846, 0.861)),
    ("knn", DATASET): (0.824, (0.722, 0.796, 0.822, 0.829)),
    ("linear", DOWNSTREAM): (0.902, (0.844, 0.918, 0.942, 0.958)),
    ("knn", DOWNSTREAM): (0.921, (0.803, 0.902, 0.925, 0.934)),
    ("fewshot", DOWNSTREAM): (0.781, (0.612, 0.741, 0.792, 0.823)),
    ("finetune", DOWNSTREAM): (None, (0.921, 0.949, 0.958, 0.964)),
}
NUM_TEST = {DATASET: 10_000, DOWNSTREAM: 899}
TASK_DIGESTS = {task: (sha256_hex(f"{task} train".encode()), sha256_hex(f"{task} test".encode())) for task in NUM_TEST}


def build_example(
    root: Path,
    *,
    curves: dict[tuple[str, str], tuple[float | None, tuple[float, ...]]] | None = None,
    class_names: tuple[str, ...] = CLASS_NAMES,
    steps: tuple[int, ...] = STEPS,
    artefacts: bool = True,
    seconds: bool = True,
) -> Store:
    """Write the example into folder *root* and return its store.

    *curves* replaces CURVES (``{}``: no evaluations), *steps* the checkpoints (``()``: none).
    """
    store = open_store(str(root))
    put_dataset(store, class_names)
    put_run(store)
    for step in steps:
        put_checkpoint(store, step)
    if seconds:
        times = {"shard": 21.4, "pretrain": 412.8, "evaluate": 96.2, "report": 4.1}
        store.put(f"{run_prefix(RUN)}/seconds.json", canonical_json(times).encode())
    for (evaluator, task), (pixels, values) in (CURVES if curves is None else curves).items():
        put_curve(store, evaluator, task, pixels, dict(zip(STEPS, values, strict=True)))
    if artefacts:
        put_inspection(store, max(steps), len(class_names))
    return store


def weights_digest(step: int) -> str:
    """The digest of the made-up weights of *step*."""
    return sha256_hex(f"weights of step {step}".encode())


def put_dataset(store: Store, class_names: tuple[str, ...]) -> None:
    """The dataset card (the shards themselves are not made)."""
    card = DatasetCard(
        name=DATASET,
        class_names=class_names,
        num_input=60_012,
        num_samples=59_996,
        num_rejected=3,
        num_duplicates=13,
        num_bytes=41_600_000,
        num_shards=12,
        statistics=plain_statistics(tuple(60_000 // len(class_names) for _ in class_names), {"png": 59_996}, 28),
        made_of={},
        recipe={"samples_per_shard": 5000},
        listing_digest=sha256_hex(b"listing"),
        fingerprint=sha256_hex(b"shard recipe"),
        tables={},
        digest=sha256_hex(b"dataset"),
    )
    store.put(f"{dataset_prefix(DATASET)}/{CARD}", card.to_json())


def put_run(store: Store) -> None:
    """The run card, and the metrics of two attempts that overlap from step 181 to 200."""
    card = RunCard(
        name=RUN,
        fingerprint=fingerprint(RECIPE),
        fingerprinted=RECIPE,
        recipe=RECIPE,
        dataset_name=DATASET,
        dataset_digest=sha256_hex(b"dataset"),
        order=OrderParameters(seed=0, partitions=16, window=4096, batch_size=BATCH),
        code_version="0.1.0+3f2a9c1",
    )
    store.put(f"{run_prefix(RUN)}/run.json", card.to_json())
    for attempt, logged in (("0001", range(1, 201)), ("0002", range(181, 301))):
        journal = Journal(store, f"{run_prefix(RUN)}/metrics/{attempt}")
        for step in logged:
            journal.append(metrics_row(step, attempt).model_dump(mode="json"))
            if step % 64 == 0:
                journal.flush()
        journal.flush()


def metrics_row(step: int, attempt: str) -> MetricsRow:
    """What *attempt* logged at *step*; two attempts differ in their speed alone."""
    random = generator(7, "metrics", step)
    loss = 0.42 + 1.9 * math.exp(-step / 55) + 0.07 * float(random.standard_normal())
    warm, rest = 30, 270
    rate = 1e-3 * (step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / rest)))
    speed = (186 if attempt == "0001" else 193) + 5 * float(random.standard_normal()) - (70 if step in (1, 181) else 0)
    return MetricsRow(
        step=step,
        position=step * BATCH,
        loss=loss.hex(),
        learning_rate=rate,
        grad_norm=(1.0 + 0.2 * float(random.random())).hex(),
        images_per_second=speed,
        data_wait_share=0.012 + 0.004 * float(random.random()),
        seconds=BATCH / speed,
    )


def put_checkpoint(store: Store, step: int) -> None:
    """The card of a checkpoint (its files are not made)."""
    weights = StoredFile(name="model.safetensors", num_bytes=10_900_000, sha256=weights_digest(step))
    card = CheckpointCard(
        run=RUN,
        step=step,
        position=step * BATCH,
        updates=step,
        attempt="0001" if step <= 200 else "0002",
        world_size=2,
        zero_stage=1,
        dtype="bf16",
        fingerprint=fingerprint(RECIPE),
        dataset_digest=sha256_hex(b"dataset"),
        code_version="0.1.0+3f2a9c1",
        files=(weights,),
        weights=weights,
    )
    store.put(checkpoint_card_key(RUN, step), card.to_json())


def put_curve(store: Store, evaluator: str, task: str, pixels: float | None, values: dict[int, float]) -> None:
    """Results of one evaluator on one task: each step, pixels, a stranger's weights, pixels on other data."""
    for step, value in values.items():
        put_result(store, weights_digest(step), (evaluator, task), value)
    put_result(store, sha256_hex(b"another run"), (evaluator, task), 0.999)
    if pixels is not None:
        put_result(store, PIXELS, (evaluator, task), pixels)
        put_result(store, PIXELS, (evaluator, task), 0.998, digests=(sha256_hex(b"elsewhere"),))


def put_result(
    store: Store,
    weights: str,
    entry: tuple[str, str],
    value: float,
    *,
    settings: dict[str, Any] | None = None,
    digests: tuple[str, ...] | None = None,
) -> None:
    """One result of *entry* (evaluator, task), or one per seed for the few-shot evaluator, around *value*."""
    evaluator, task = entry
    few = evaluator == "fewshot"
    for seed in range(3 if few else 1):
        key = EvaluationKey(
            weights_digest=weights,
            evaluator=evaluator,
            protocol_version=1,
            task=task,
            dataset_digests=digests or TASK_DIGESTS[task],
            transform={} if weights == PIXELS else {"size": 28, "mean": [0.5] * 3, "std": [0.5] * 3},
            settings=settings or ({"shots": 10} if few else {}),
            seed=seed,
        )
        result = _result(key, min(value + 0.008 * (seed - 1), 1.0) if few else value)
        store.put_if_absent(result_key(key.id), result.to_json())


def _result(key: EvaluationKey, top1: float) -> EvaluationResult:
    low, high = wilson(top1, NUM_TEST[key.task])
    return EvaluationResult(
        id=key.id,
        key=key,
        metrics=(Metric(name="top1", value=top1, low=low, high=high),),
        num_samples=NUM_TEST[key.task],
        chosen={"l2": 0.01},
        seconds=3.5,
        files={},
    )


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share of *n*."""
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def put_inspection(
    store: Store, step: int, num_classes: int, arrays: dict[str, np.ndarray[Any, Any]] | None = None
) -> str:
    """The inspect result of *step* with its artefacts (*arrays*, or made-up ones); its id."""
    data = save(arrays if arrays is not None else example_arrays(num_classes))
    key = EvaluationKey(
        weights_digest=weights_digest(step),
        evaluator="inspect",
        protocol_version=1,
        task=DATASET,
        dataset_digests=TASK_DIGESTS[DATASET][1:],
        transform={"size": 28},
        settings={},
        seed=0,
    )
    result = EvaluationResult(
        id=key.id,
        key=key,
        metrics=(),
        num_samples=NUM_TEST[DATASET],
        chosen={},
        seconds=1.0,
        files={ARTEFACTS: sha256_hex(data)},
    )
    store.put(file_key(key.id, ARTEFACTS, sha256_hex(data)), data)
    store.put(result_key(key.id), result.to_json())
    return key.id


def example_arrays(num_classes: int) -> dict[str, np.ndarray[Any, Any]]:
    """Artefacts of the right names, shapes and dtypes: wave filters, a grid of bumps, blurred blocks for images."""
    random = generator(7, "artefacts")
    labels = random.integers(0, num_classes, 32)
    predictions = np.where(random.random(32) < 0.8, labels, random.integers(0, num_classes, 32))
    confusion = np.diag(random.integers(780, 980, num_classes)) + random.integers(0, 18, (num_classes, num_classes))
    if num_classes > 6:
        confusion[6, 0], confusion[4, 2], confusion[2, 6] = 148, 96, 83
    return {
        "patch_filters": np.stack([_wave(number, random) for number in range(64)]),
        "position_similarity": _bumps(7, 7, random),
        "sample_images": np.stack([_blob(int(label), random) for label in labels]),
        "sample_labels": labels.astype(np.int64),
        "sample_predictions": predictions.astype(np.int64),
        "sample_probabilities": random.uniform(0.4, 1, 32).astype(np.float32),
        "confusion": confusion.astype(np.int64),
    }


def _wave(number: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    rows, columns = np.mgrid[0:4, 0:4] / 4
    angle, pitch = number * 0.7, 0.5 + number / 24
    wave = np.sin(2 * np.pi * pitch * (rows * math.cos(angle) + columns * math.sin(angle)) + number)
    colour = random.standard_normal(3) * (0.9 if number % 3 else 0.15) + 1
    return np.asarray(wave[..., None] * colour + 0.1 * random.standard_normal((4, 4, 3)), dtype=np.float32)


def _bumps(height: int, width: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    rows, columns = np.mgrid[0:height, 0:width]
    down = rows[..., None, None] - rows
    across = columns[..., None, None] - columns
    near = np.exp(-(down**2 + across**2) / 5)
    lines = 0.35 * np.exp(-(down**2) / 0.6) + 0.35 * np.exp(-(across**2) / 0.6)
    noise = 0.04 * random.standard_normal(near.shape)
    return np.asarray(np.clip(0.5 * near + lines + noise - 0.2 + 0.5 * (near == 1), -1, 1), dtype=np.float32)


def _blob(label: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    rows, columns = np.mgrid[0:28, 0:28] - 13.5
    reach = 1 + 0.35 * np.cos((label % 5 + 2) * np.arctan2(rows, columns) + label)
    shape = np.clip((11 * reach - np.hypot(rows, columns * (1 + 0.06 * label))) / 4, 0, 1)
    grey = np.clip(255 * shape * (0.75 + 0.1 * random.standard_normal((28, 28))), 0, 255)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
