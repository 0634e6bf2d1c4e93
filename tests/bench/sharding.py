"""Sharding on a local Ray of two CPUs against bare loops, tar and img2dataset: from the first task to the last commit.

ImageNet-like JPEGs of 500 x 375 pixels and 60 to 110 kB in nested folders, in the page cache; workers and loops are up
and warm. The bare loops run in as many processes as Ray has CPUs; they decode and resize by the same library, in the
same process, and tar with tarfile: no second process, no statistics, no index, no order, no fsync. img2dataset gets
the same images from a static server on loopback, which shares the two cores with it; ours reads them from disk.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs.base.ray_session import connected
from jobs.base.recipe import ChainRecipe, ShardStage
from jobs.shard import list_sources, shard_connected
from pipeline.base.progress import Silent
from pipeline.records.dataset import DatasetCard
from tests.bench import bare, corpus
from tests.bench.peers import img2dataset
from tests.bench.row import Row, Spent

_COUNT = 30_000
_ROUNDS = 2
_CPUS = 2  # of connected()
EVEN = {"RAY_worker_niceness": "0"}  # Ray's tasks are nice by 15, and would wait for whatever else runs; peers do not


@dataclass(frozen=True)
class _Bench:
    """One way of sharding, and its peers: name -> (call, least ratio).

    The corpus is taken *times* times, so that it takes about a minute. The shards are then even in number.
    """

    what: str
    settings: dict[str, Any]
    peers: Mapping[str, tuple[Callable[[_Run], Spent], float | None]]
    times: int


@dataclass(frozen=True)
class _Run:
    """What is worked on: *files* below *root*, *times* times, into *folder*."""

    files: list[Path]
    root: Path
    folder: Path
    times: int


class FirstTask(Silent):
    """Remembers when the tasks of a sharding were started, on the clock that all processes share."""

    def __init__(self) -> None:
        self.at = 0.0

    def start(self, label: str, total: int | None = None) -> None:
        """See Progress."""
        if label.startswith("shard "):
            self.at = time.monotonic()


def measure() -> list[Row]:
    """Each bench with its peers in turns, so that a machine which gets slower gets slower for all."""
    os.environ.update(EVEN)
    with tempfile.TemporaryDirectory(prefix="vitpipe-bench-") as name, connected(None):
        files = corpus.make(Path(name) / "corpus", _COUNT)
        return [row for bench in _benches() for row in _measure(bench, files, Path(name))]


def _benches() -> list[_Bench]:
    keep = {"a bare loop of decode, sha256 and tar": (_bare(bare.decode_and_digest), 0.85)}
    tars = {"tar cf": (_tar, 0.6), "tar cf and fsync, which ours does too": (_tar_synced, None)}
    resized = {
        "a bare loop of decode, resize, encode and tar": (_bare(bare.decode_and_resize), 0.85),
        "img2dataset 1.47": (_img2dataset, 1.3),
    }
    return [
        _Bench("bytes kept, every image decoded", {}, keep, times=4),
        _Bench("bytes kept, check=header", {"check": "header"}, tars, times=4),
        _Bench("short side 256, JPEG", {"resize": {"mode": "short", "size": 256}}, resized, times=2),
    ]


def _measure(bench: _Bench, files: list[Path], scratch: Path) -> list[Row]:
    run = _Run(files, scratch / "corpus", scratch / "peer", bench.times)
    spent: dict[str, list[Spent]] = {name: [] for name in ("", *bench.peers)}
    count = len(files) * bench.times
    for _ in range(_ROUNDS):
        spent[""].append(_ours(run, scratch, bench.settings))
        for name, (call, _least) in bench.peers.items():
            spent[name].append(call(run))
            shutil.rmtree(run.folder)
            os.sync()  # what it left to be written would slow down the next one
    for name, runs in spent.items():
        print(f"{bench.what}: {name or 'ours'}: {'; '.join(one.told(count) for one in runs)}", file=sys.stderr)
    mine = _mean(spent[""])
    rows = []
    for name, (_, least) in bench.peers.items():
        theirs = _mean(spent[name])
        what = f"{bench.what}: against {name}"
        rows.append(Row(what, mine.told(count), theirs.told(count), theirs.seconds / mine.seconds, least))
    return rows


def _mean(runs: list[Spent]) -> Spent:
    return Spent(*(statistics.fmean(values) for values in zip(*runs, strict=True)))


def _ours(run: _Run, scratch: Path, settings: dict[str, Any]) -> Spent:
    """A whole sharding, after a small one for which workers and decoders are started."""
    shard_folder(run.files[0].parent, scratch / "warm", settings | {"max_samples": 5})
    before = _cpu_seconds()
    seconds, card = shard_folder(run.root, scratch / "ours", settings, run.times)
    spent = Spent(seconds, _cpu_seconds() - before)
    for name in ("warm", "ours"):
        shutil.rmtree(scratch / name)
    os.sync()
    if card.num_samples != len(run.files) * run.times:
        raise RuntimeError(f"{card.num_samples} of {len(run.files) * run.times} images were written")
    return spent


def _cpu_seconds() -> float:
    """Of this process, of Ray, and of its workers and their decoders so far."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))


def shard_folder(source: Path, workspace: Path, settings: dict[str, Any], times: int = 1) -> tuple[float, DatasetCard]:
    """Shard *source* by what the command runs; seconds from the first task to the card, and the card."""
    sources = [{"source": str(source), "name": f"copy-{number}"} for number in range(times)]
    stage = ShardStage.model_validate({"source": sources, "name": "bench", **settings})
    recipe = ChainRecipe(workspace=workspace.as_uri(), shard=(stage,))
    progress = FirstTask()
    (card,) = shard_connected(recipe, list_sources(recipe), progress)
    return time.monotonic() - progress.at, card


def _bare(loop: bare.Loop) -> Callable[[_Run], Spent]:
    return lambda run: bare.run(loop, run.files * run.times, run.folder, _CPUS)


def _tar(run: _Run) -> Spent:
    return _tar_then(run, "")


def _tar_synced(run: _Run) -> Spent:
    return _tar_then(run, " && sync all.tar")


def _tar_then(run: _Run, then: str) -> Spent:
    run.folder.mkdir()
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = "tar cf all.tar --hard-dereference" + f" -C {run.root} ." * run.times + then
    subprocess.run(["sh", "-c", command], check=True, cwd=run.folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(time.monotonic() - started, sum(after[:2]) - sum(before[:2]))


def _img2dataset(run: _Run) -> Spent:
    return img2dataset.run(run.files * run.times, run.root, run.folder, _CPUS)
