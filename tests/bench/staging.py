"""Staging from a local S3 server, against boto3's own TransferManager with as many requests at once.

Both write into memory where there is a file system for that: stage syncs every file to its disk before it counts, the
peer does not, and a disk's speed is not what is compared. Ours also digests every byte and writes its manifest.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import boto3.s3.transfer
import numpy as np
import s3transfer
from botocore.config import Config

from infra.local.s3_server import LocalS3
from jobs.stage import run_stage as stage
from pipeline.base.progress import Silent
from pipeline.base.units import format_bytes
from pipeline.corpus.staging.recipe import StageRecipe
from tests.bench.row import Row

_PARALLEL = 8
_ROUNDS = 3  # each of ours and theirs, interleaved
_BUCKET = "bench-bucket"


def measure() -> list[Row]:
    """Two corpora: large objects and small ones."""
    kept = dict(os.environ)
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place,
        LocalS3(Path(folder) / "server") as server,
    ):
        try:
            os.environ.update(server.environment())
            boto3.session.Session().client("s3").create_bucket(Bucket=_BUCKET)
            draw = np.random.default_rng(0)
            large = [int(size) for size in draw.integers(1_000_000, 8_000_000, 200)]
            return [
                _compare(Path(place), "large", "200 objects of 1-8 MB", large),
                _compare(Path(place), "small", "2,000 objects of 100 kB", [100_000] * 2000),
            ]
        finally:
            os.environ.clear()
            os.environ.update(kept)


def _compare(folder: Path, name: str, what: str, sizes: list[int]) -> Row:
    _fill(name, sizes)
    ours, peer = [], []
    for number in range(_ROUNDS + 1):
        first, second = _rate(folder, name, sizes, _stage), _rate(folder, name, sizes, _download)
        if number:  # the first one warms up
            ours.append(first)
            peer.append(second)
    ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, peer, strict=True))
    return Row(
        f"staging {what} from a local S3 server, {_PARALLEL} at once, against s3transfer {s3transfer.__version__}",
        f"{format_bytes(int(statistics.median(ours)))}/s",
        f"{format_bytes(int(statistics.median(peer)))}/s",
        ratio,
        least=0.8,
    )


def _fill(name: str, sizes: list[int]) -> None:
    client = boto3.session.Session().client("s3")
    data = np.random.default_rng(1).bytes(max(sizes))

    def put(number: int) -> None:
        client.put_object(Bucket=_BUCKET, Key=f"{name}/{number % 10}/{number:06d}", Body=data[: sizes[number]])

    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(put, range(len(sizes))))


def _rate(folder: Path, name: str, sizes: list[int], copy: object) -> float:
    """Bytes a second of *copy* into an empty folder."""
    target = folder / "target"
    started = time.perf_counter()
    copy(name, target)  # type: ignore[operator]
    seconds = time.perf_counter() - started
    found = [path for path in target.rglob("[0-9]*") if path.is_file()]
    assert sum(path.stat().st_size for path in found) == sum(sizes)
    shutil.rmtree(target)
    return sum(sizes) / seconds


def _stage(name: str, target: Path) -> None:
    stage(f"s3://{_BUCKET}/{name}", str(target), StageRecipe(parallel=_PARALLEL), Silent())


def _download(name: str, target: Path) -> None:
    """List and download with one TransferManager: no digests, no sync to disk, no manifest."""
    client = boto3.session.Session().client("s3", config=Config(max_pool_connections=2 * _PARALLEL))
    config = boto3.s3.transfer.TransferConfig(max_concurrency=_PARALLEL)
    with boto3.s3.transfer.create_transfer_manager(client, config) as manager:
        futures = []
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET, Prefix=f"{name}/"):
            for item in page["Contents"]:
                path = target / item["Key"]
                path.parent.mkdir(parents=True, exist_ok=True)
                futures.append(manager.download(_BUCKET, item["Key"], str(path)))
        for future in futures:
            future.result()


if __name__ == "__main__":
    for row in measure():
        print(row)
