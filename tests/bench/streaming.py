"""Streaming on two cores: batches of random crops from warm local shards, and raw samples from a bucket, cold.

Batches of 128 crops of 224 pixels with 2 loader processes, digests compared, from ImageNet-like JPEGs of 60 to 110 kB,
against the same by webdataset, Pillow and torch's DataLoader with 2 workers, and against 2 processes that do nothing
but decode and augment files that they have in memory. From a local S3 server, which shares the cores: all samples in
stream order, with their digests, through an empty cache, against GETs of the same shards by as many connections.

What limits them: of a crop's CPU time decoding takes 62 %, augmenting 24 %, reading and its sha256 8 %, copies 4 % (the
bare loop has the first two alone); of the cold bucket the server itself, which shares the cores, then sha256 and the
copies into the cache and out of it, which GETs that forget their bytes do not make.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import boto3
import webdataset
from botocore.config import Config

from infra.local.s3_server import LocalS3
from pipeline.base.store import Store, open_store
from pipeline.base.units import format_bytes
from pipeline.base.world import World
from pipeline.shard.recipe import ShardRecipe
from pipeline.stream.batch import StreamPlan, mixture_of
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.loader import StreamLoader
from pipeline.stream.prefetch import Prefetcher
from pipeline.stream.recipe import AugmentRecipe, StreamRecipe
from tests.bench.pictures import imagenet_like
from tests.bench.plain_streams import BATCH, SIZE, WORKERS, bare_loops, webdataset_batches
from tests.bench.row import Row
from tests.support.datasets import corpus_of, shard_corpus
from tests.support.pictures import noise, png

_NAME, _BUCKET = "bench", "bench-bucket"
_IMAGES, _OF_A_SHARD = 2_000, 250
_BATCHES, _WARM = 20, 4  # of a round, and before it
_ROUNDS = 5
_FIRST_SECONDS = 2.0
_RAW, _RAW_OF_A_SHARD = 8_000, 1_000
_CONNECTIONS = 8
_PIECE_BYTES = 8 << 20


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="vitpipe-bench-") as folder:
        rows = crops(Path(folder))
    with tempfile.TemporaryDirectory(prefix="vitpipe-bench-") as folder, _bucket(Path(folder)):
        return rows + cold(Path(folder))


def crops(folder: Path) -> list[Row]:
    """Ours against webdataset and against bare loops, in turns."""
    files = list(imagenet_like(_IMAGES))
    store = open_store(str(folder))
    _shard(store, {f"{number}.jpg": data for number, data in enumerate(files)}, _OF_A_SHARD)
    shards = sorted((folder / "datasets" / _NAME).glob("*.tar"))
    digest, header, peer, bare = [], [], [], []
    starts, resumes = [], []
    with bare_loops(files) as images_per_second:
        for _ in range(_ROUNDS):
            digest.append(_ours(store, "digest"))
            batches = webdataset_batches(shards)
            peer.append(_rate(batches))
            del batches  # ends its processes
            bare.append(images_per_second(_BATCHES * BATCH / digest[-1]))
            header.append(_ours(store, "header"))
            starts.append(_first_batch(store, 0))
            resumes.append(_first_batch(store, 123_456 * BATCH))
    what = f"batches of {BATCH} random crops of {SIZE} px, {WORKERS} workers"
    plain, told = f"bare loops in {WORKERS} processes", f"webdataset {webdataset.__version__}, Pillow and DataLoader"
    return [
        _row(f"{what}, against {told}", digest, peer, 1.3),
        _row(f"{what}, against {plain}", digest, bare, 0.9),
        _row(f"{what}, check=header, against {plain}", header, bare, None),
        _seconds_row(f"first of those {what}: from nothing to its tensors", starts),
        _seconds_row("the same, resumed at step 123,456", resumes),
    ]


def _first_batch(store: Store, position: int) -> float:
    """Seconds from opening the dataset to the first batch, the loader processes' start included."""
    recipe = StreamRecipe(batch_size=BATCH, workers=WORKERS, augment=AugmentRecipe(size=SIZE))
    started = time.perf_counter()
    reader = DatasetReader(store, _NAME)
    with closing(StreamLoader(reader, recipe, seed=0, world=World(), position=position)) as loader:
        next(loader)
        return time.perf_counter() - started


def _seconds_row(what: str, seconds: Sequence[float]) -> Row:
    slowest = max(seconds)
    return Row(what, f"{slowest:.2f} s", f"{_FIRST_SECONDS:g} s allowed", _FIRST_SECONDS / slowest, 1.0)


def _ours(store: Store, check: Literal["digest", "header"]) -> float:
    recipe = StreamRecipe(batch_size=BATCH, workers=WORKERS, check=check, augment=AugmentRecipe(size=SIZE))
    reader = DatasetReader(store, _NAME, check=check)
    with closing(StreamLoader(reader, recipe, seed=0, world=World())) as loader:
        return _rate(loader)


def _rate(batches: Iterator[Any]) -> float:
    """Images per second, once under way."""
    for _ in islice(batches, _WARM):
        pass
    started = time.perf_counter()
    for _ in islice(batches, _BATCHES):
        pass
    return _BATCHES * BATCH / (time.perf_counter() - started)


def _row(what: str, ours: Sequence[float], peer: Sequence[float], least: float | None) -> Row:
    ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, peer, strict=True))
    mine, theirs = (f"{statistics.median(rates):.0f} images/s" for rates in (ours, peer))
    return Row(what, mine, theirs, ratio, least)


def _shard(store: Store, images: dict[str, bytes], of_a_shard: int) -> None:
    labels = {origin: [number % 10] for number, origin in enumerate(images)}
    corpus = corpus_of(dict(images), labels, tuple(f"class-{number}" for number in range(10)))
    recipe = ShardRecipe(max_samples=of_a_shard, max_bytes=10**9, check="header")
    shard_corpus(store, _NAME, corpus, recipe)


@contextmanager
def _bucket(folder: Path) -> Iterator[None]:
    kept = dict(os.environ)
    with LocalS3(folder / "server") as server:
        try:
            os.environ.update(server.environment())
            boto3.session.Session().client("s3").create_bucket(Bucket=_BUCKET)
            yield
        finally:
            os.environ.clear()
            os.environ.update(kept)


def cold(folder: Path) -> list[Row]:
    """Ours against GETs of whole shards, and of pieces of them, in turns."""
    store = open_store(f"s3://{_BUCKET}")
    base = png(noise(100, 199), compress_level=0)  # 60 kB; what follows its end makes samples distinct
    _shard(store, {f"{number}.png": base + number.to_bytes(8, "big") for number in range(_RAW)}, _RAW_OF_A_SHARD)
    reader = DatasetReader(store, _NAME)
    entries = {f"datasets/{_NAME}/{entry.name}": entry.num_bytes for entry in reader.shards}
    total = sum(entries.values())
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: _stream(store, folder / "cache"),
        "whole shards": lambda: _get([(key, "") for key in entries]),
        "pieces of 8 MiB": lambda: _get(_pieces(entries)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(_ROUNDS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:  # the first one warms the server up
                rates[name].append(total / (time.perf_counter() - started))
    least = {"whole shards": 0.8}
    return [_cold_row(rates["ours"], name, rates[name], least.get(name)) for name in list(ways)[1:]]


def _cold_row(ours: Sequence[float], name: str, peer: Sequence[float], least: float | None) -> Row:
    ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, peer, strict=True))
    mine, theirs = (f"{format_bytes(int(statistics.median(rates)))}/s" for rates in (ours, peer))
    what = (
        f"reading {_RAW:,} samples in stream order from a bucket, cold, against {_CONNECTIONS} threads that GET {name}"
    )
    return Row(what, mine, theirs, ratio, least)


def _stream(store: Store, cache: Path) -> None:
    """Read every sample once, as one rank does, with read-ahead; the cache is removed."""
    recipe = StreamRecipe(batch_size=64, partitions=2, window=_RAW_OF_A_SHARD)
    plan = StreamPlan(recipe, 0, World())
    reader = DatasetReader(store, _NAME, cache=cache)
    mixture = mixture_of([reader], plan)
    ahead = Prefetcher([reader], mixture, range(recipe.partitions), 0, shards=8, share_bytes=10**10)
    try:
        for step in range(_RAW // recipe.batch_size):
            ahead.advance(step * recipe.batch_size)
            refs = mixture.locate(plan.positions(step)).refs
            for found in reader.read_many(zip(refs.shards.tolist(), refs.rows.tolist(), strict=True)):
                assert not isinstance(found, Exception)
    finally:
        ahead.close()
        reader.close()
        shutil.rmtree(cache)


def _pieces(entries: dict[str, int]) -> list[tuple[str, str]]:
    return [
        (key, f"bytes={start}-{min(start + _PIECE_BYTES, num_bytes) - 1}")
        for key, num_bytes in entries.items()
        for start in range(0, num_bytes, _PIECE_BYTES)
    ]


def _get(requests: list[tuple[str, str]]) -> None:
    """GET each key, or the part of it that a range names, and forget what comes."""
    client = boto3.session.Session().client("s3", config=Config(max_pool_connections=_CONNECTIONS))

    def get(request: tuple[str, str]) -> None:
        key, part = request
        answer = client.get_object(Bucket=_BUCKET, Key=key, **({"Range": part} if part else {}))
        for _ in answer["Body"].iter_chunks(1 << 20):
            pass

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(get, requests))


if __name__ == "__main__":
    for row in measure():
        print(row)
