"""``vitpipe stream bench``: how fast each stage of the stream is, what limits it, and how well it shuffles."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.base.config import apply_overrides, build
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Stores
from pipeline.base.world import World
from pipeline.records.dataset import dataset_prefix
from pipeline.stream.batch import StreamPlan
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.order import check_world
from pipeline.stream.profiling import StageTime, time_building, time_fetching
from pipeline.stream.recipe import StreamRecipe
from pipeline.stream.shuffle_quality import shuffle_quality

_WINDOWS = (1_000, 10_000, 100_000)  # beside the recipe's own
_LARGEST_WINDOW = 4_000_000  # a window is judged whole, in memory
_NUM_READY = 3  # batches that are built before handing over alone is timed
_SLOW = 0.7  # a loader that reaches less of what its stages allow is held up by something else
_WAYS_OUT = {
    "fetch": "a nearer store helps, or a cache that holds the dataset from the second epoch on",
    "order": "a larger batch_size makes it cheaper",
    "read": "check=header reads without comparing digests",
    "decode": "smaller images help (vitpipe shard with reencode), or more cores",
    "augment": "fewer RandAugment layers or filter=bilinear help, or more cores",
    "collate": "a smaller augment.size helps, or more cores",
    "hand-over": "a smaller augment.size helps, or more ranks",
}


def bench(
    workspace: str,
    stores: Stores,
    name: str,
    overrides: list[str],
    seconds: float,
    world_size: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Measure dataset *name* under the StreamRecipe that *overrides* make, as plain values.

    Raises InputError when there is no such dataset, RecipeError for a recipe or a world size that cannot be, and
    DamageError at a damaged sample.
    """
    recipe = build(StreamRecipe, apply_overrides({}, overrides), "stream")
    plan = StreamPlan(recipe, seed=0, world=World(0, world_size or recipe.partitions))
    check_world(plan.world.size, recipe.partitions, recipe.batch_size)
    store = open_store(workspace, stores)
    in_place = store.local_path(dataset_prefix(name)) is not None
    with tempfile.TemporaryDirectory(prefix="vitpipe-stream-bench-") as cache:  # empty, so that fetching is measured
        reader = DatasetReader(
            store,
            name,
            check=recipe.check,
            access=recipe.access,
            cache=Path(cache),
            cache_bytes=recipe.cache_bytes,
        )
        try:
            stages = _stages(reader, plan, seconds, in_place, progress)
            loaders = [_load(reader, plan, workers, seconds, progress) for workers in (0, _workers(recipe))]
        finally:
            reader.close()
    stages.append(loaders[-1].hand_over)
    limit, sentence = bottleneck(stages, loaders[-1].workers, num_cores(), loaders[-1].rate)
    stages.append(loaders[-1].wait)
    return {
        "workspace": workspace,
        "name": name,
        "recipe": recipe.model_dump(mode="json"),
        "world_size": plan.world.size,
        "batch_of_a_rank": plan.num_samples,
        "cores": num_cores(),
        "stages": [_plain(stage) for stage in stages],
        "loader": [{"workers": loader.workers, "samples_per_second": loader.rate} for loader in loaders],
        "bottleneck": {"stage": limit, "told": sentence},
        "shuffle": _qualities(reader, recipe),
    }


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _workers(recipe: StreamRecipe) -> int:
    return recipe.workers or num_cores()


def _stages(
    reader: DatasetReader, plan: StreamPlan, seconds: float, in_place: bool, progress: Progress
) -> list[StageTime]:
    fetched: list[StageTime] = []
    shards = None
    if not (in_place or reader.is_ranged):
        progress.message(f"fetching shards for {seconds:g} s")
        taken, shards = time_fetching(reader, plan, seconds)
        fetched.append(taken)
    progress.message(f"building batches stage by stage for {seconds:g} s")
    return fetched + time_building(reader, plan, seconds, shards)


class LoaderRate(NamedTuple):
    """What the loader did with some workers: samples per second, and handing over batches that were ready.

    ``wait``: how long a consumer that does nothing with a batch waits for the next.
    """

    workers: int
    rate: float
    hand_over: StageTime
    wait: StageTime


def _load(reader: DatasetReader, plan: StreamPlan, workers: int, seconds: float, progress: Progress) -> LoaderRate:
    # Imported here: with torch, which the audit does without.
    from pipeline.stream.loader import StreamLoader  # noqa: PLC0415

    progress.message(f"the loader with {workers} workers for {seconds:g} s")
    recipe = plan.recipe.model_copy(update={"workers": workers, "audit": False})
    loader = StreamLoader(reader, recipe, seed=plan.seed, world=plan.world, labels="none", on_message=progress.message)
    try:
        for _ in range(max(1, workers)):  # until every process has begun
            next(loader)
        started, taken, passed, wait = time.perf_counter(), 0, 0.0, StageTime("wait")
        while passed < seconds:
            wait.add(plan.num_samples, _seconds_of_next(loader))
            taken, passed = taken + plan.num_samples, time.perf_counter() - started
        hand_over = StageTime("hand-over", plan.num_samples, plan.num_samples)
        if workers:  # let some be built
            time.sleep(min(_NUM_READY * plan.num_samples * passed / taken, 2 * seconds))
            hand_over.seconds = min(_seconds_of_next(loader) for _ in range(_NUM_READY))
    finally:
        loader.close()
    return LoaderRate(workers, taken / passed, hand_over, wait)


def _seconds_of_next(loader: Any) -> float:
    started = time.perf_counter()
    next(loader)
    return time.perf_counter() - started


def bottleneck(stages: Sequence[StageTime], workers: int, cores: int, rate: float) -> tuple[str, str]:
    """The stage that limits the stream, and one sentence about it.

    *stages* are of one process; building is done by *workers* processes on *cores*, fetching and handing over are not
    spread. *rate* is what the loader reached, in samples per second.
    """
    per_sample = {stage.stage: 1 / stage.rate for stage in stages if stage.rate}
    alone = {name: 1 / per_sample[name] for name in ("fetch", "hand-over") if name in per_sample}
    building = {name: cost for name, cost in per_sample.items() if name not in alone}
    total, heaviest = sum(building.values()), max(building, key=lambda name: building[name])
    processes = min(workers, cores)
    possible = alone | {heaviest: processes / total}
    limit = min(possible, key=lambda name: possible[name])
    if limit == heaviest:
        of = f"it takes {building[limit] / total:.0%} of the {1e3 * total:.2f} ms that a process works on a sample"
        sentence = f"{limit} limits the stream: {of}; {processes} processes can do {possible[limit]:.0f} samples/s"
    else:
        sentence = f"{limit} limits the stream: it gives {possible[limit]:.0f} samples/s"
    if rate < _SLOW * possible[limit]:
        return limit, f"{sentence}; but the loader reaches {rate:.0f}, so something else on this machine takes its time"
    return limit, f"{sentence}; {_WAYS_OUT[limit]}"


def _plain(stage: StageTime) -> dict[str, Any]:
    return {
        "stage": stage.stage,
        "samples_per_second": stage.rate,
        "microseconds_per_sample": 1e6 / stage.rate if stage.rate else None,
        "bytes_per_second": stage.num_bytes / stage.seconds if stage.num_bytes and stage.seconds else None,
    }


def _qualities(reader: DatasetReader, recipe: StreamRecipe) -> list[dict[str, Any]]:
    """Shuffle quality of the recipe's window and of some others that make a difference."""
    largest = -(-reader.card.num_samples // recipe.partitions)  # a window over a partition: more changes nothing
    windows = {min(window, largest) for window in (*_WINDOWS, recipe.window)}
    return [
        asdict(
            shuffle_quality(
                reader.shards.sizes, batch_size=recipe.batch_size, partitions=recipe.partitions, window=window
            )
        )
        | {"is_chosen": window == min(recipe.window, largest)}
        for window in sorted(windows)
        if window <= _LARGEST_WINDOW
    ]
