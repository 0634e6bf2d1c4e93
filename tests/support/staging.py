"""Corpora to stage, staging them, and what must be so afterwards."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from pathlib import Path

import boto3
import pyarrow.parquet as pq

from jobs.stage import StagedCorpus
from jobs.stage import run_stage as stage
from pipeline.base.digests import sha256_hex
from pipeline.base.progress import Silent
from pipeline.base.store import BucketSettings, Stores, open_store
from pipeline.corpus.staging.manifest import DATA
from pipeline.corpus.staging.recipe import StageRecipe

PART_BYTES = 5 << 20  # the smallest that S3 knows
BIG = "tars/big.tar"  # in three parts
QUICK = StageRecipe(parallel=4, part_bytes=PART_BYTES, low_speed_bytes=20_000, low_speed_seconds=1.0)


def make_corpus(seed: int, num_small: int = 24) -> dict[str, bytes]:
    """Objects by their keys: small ones of any size in folders with odd names, and one in three parts."""
    draw = random.Random(seed)
    small = {
        f"class {number % 3}/é+{number:03d}.jpg": draw.randbytes(draw.choice([0, 1, 5_000, 60_000]) + number)
        for number in range(num_small)
    }
    return small | {BIG: draw.randbytes(2 * PART_BYTES + 12_345)}


def put_corpus(uri: str, corpus: dict[str, bytes]) -> str:
    """Put *corpus* at *uri*, the big one in parts as an uploader would; *uri* again."""
    store = open_store(uri)
    for key, data in corpus.items():
        if len(data) <= PART_BYTES:
            store.put(key, data)
            continue
        with store.multipart(key, PART_BYTES) as parts:
            for number in range(-(-len(data) // PART_BYTES)):
                parts.put_part(number, data[number * PART_BYTES :][:PART_BYTES])
            parts.complete()
    return uri


def through(uri: str, endpoint: str) -> Stores:
    """Settings that reach the bucket of *uri* at *endpoint*."""
    return {uri.split("/")[2]: BucketSettings(endpoint=endpoint)}


def stage_quietly(source: str, target: str | Path, **options: object) -> StagedCorpus:
    """Stage with the quick recipe, or with ``recipe=``."""
    recipe = options.pop("recipe", QUICK)
    return stage(source, str(target), recipe, Silent(), **options)  # type: ignore[arg-type]


def content_of(target: str | Path) -> dict[str, str]:
    """sha256 of every object below data/, read by a client of its own."""
    store = open_store(str(target))
    return {info.key.removeprefix(DATA): sha256_hex(store.read(info.key)) for info in store.list(DATA)}


def digests_of(corpus: dict[str, bytes]) -> dict[str, str]:
    """sha256 of every object."""
    return {key: sha256_hex(data) for key, data in corpus.items()}


def manifest_bytes(target: str | Path) -> dict[str, bytes]:
    """The manifest and its two tables as stored."""
    store = open_store(str(target))
    return {name: store.read(name) for name in ("manifest.json", "manifest.parquet", "rejects.parquet")}


def rejects_of(target: str | Path) -> dict[str, str]:
    """Reasons by key."""
    rows = pq.read_table(io.BytesIO(open_store(str(target)).read("rejects.parquet"))).to_pylist()
    return {row["origin"]: row["reason"] for row in rows}


def assert_nothing_left(target: str | Path) -> None:
    """O4: only the objects, the request, the manifest and its tables."""
    store = open_store(str(target))
    named = {"manifest.json", "manifest.parquet", "rejects.parquet", "request.json"}
    assert {info.key for info in store.list() if not info.key.startswith(DATA)} == named
    assert store.sweep() == 0


def new_bucket(name: str) -> str:
    """An empty bucket of the server that the environment names."""
    boto3.session.Session().client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


def start_stager(source: str, target: str, fail_at: str = "", parallel: int = 2) -> subprocess.Popen[bytes]:
    """A stager in a process of its own, to be killed."""
    code = (
        "import sys; from jobs.stage import run_stage as stage; from pipeline.base.progress import Silent;"
        "from pipeline.corpus.staging.recipe import StageRecipe;"
        f"stage(sys.argv[1], sys.argv[2], StageRecipe(parallel={parallel}, part_bytes={PART_BYTES}), Silent())"
    )
    env = os.environ | ({"VITPIPE_FAIL_AT": fail_at} if fail_at else {})
    return subprocess.Popen([sys.executable, "-c", code, source, target], env=env, stderr=subprocess.DEVNULL)
