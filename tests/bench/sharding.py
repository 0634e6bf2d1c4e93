"""Sharding on a local Ray of two CPUs against bare loops, tar and img2dataset: from the first task to the last commit.

ImageNet-like JPEGs of 500 x 375 pixels and 60 to 110 kB in nested folders, in the page cache; workers and loops are up
and warm. The bare loops run in as many processes as Ray has CPUs; they decode and resize by the same library, in the
same process, and tar with tarfile: no second process, no statistics, no index, no order, no fsync. img2dataset gets
the same images from a static server on loopback, which shares the two cores with it; ours reads them from disk.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cluster import connected
from jobs.recipe import ChainRecipe, ShardStage
from jobs.shard import list_sources, shard_connected
from pipeline.base.progress import Silent
from pipeline.records.dataset import DatasetCard
from tests.bench import bare, corpus
from tests.bench.peers import img2dataset
from tests.bench.row import Row

_COUNT = 30_000
_ROUNDS = 2
_CPUS = 2  # of connected()
EVEN = {"RAY_worker_niceness": "0"}  # Ray's tasks are nice by 15, and would wait for whatever else runs; peers do not


@dataclass(frozen=True)
class _Bench:
    """One way of sharding, and its peers: name -> (call, least ratio). The corpus is taken *times* times."""

    what: str
    settings: dict[str, Any]
    peers: dict[str, tuple[Callable[[_Run], float], float | None]]
    times: int = 1


@dataclass(frozen=True)
class _Run:
    """What a peer works on; it says how many seconds it took."""

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
        _Bench("bytes kept, every image decoded", {}, keep),
        _Bench("bytes kept, check=header", {"check": "header"}, tars, times=4),
        _Bench("short side 256, JPEG", {"resize": {"mode": "short", "size": 256}}, resized),
    ]


def _measure(bench: _Bench, files: list[Path], scratch: Path) -> list[Row]:
    run = _Run(files, scratch / "corpus", scratch / "peer", bench.times)
    seconds: dict[str, list[float]] = {name: [] for name in ("", *bench.peers)}
    for _ in range(_ROUNDS):
        seconds[""].append(_ours(run, scratch, bench.settings))
        for name, (call, _least) in bench.peers.items():
            seconds[name].append(call(run))
            shutil.rmtree(run.folder)
            os.sync()  # what it left to be written would slow down the next one
    mine, count = statistics.fmean(seconds[""]), len(files) * bench.times
    rows = []
    for name, (_, least) in bench.peers.items():
        theirs = statistics.fmean(seconds[name])
        told = [f"{count / one:.0f} images/s" for one in (mine, theirs)]
        rows.append(Row(f"{bench.what}: against {name}", told[0], told[1], theirs / mine, least))
    return rows


def _ours(run: _Run, scratch: Path, settings: dict[str, Any]) -> float:
    """Seconds of a whole sharding, after a small one for which workers and decoders are started."""
    shard_folder(run.files[0].parent, scratch / "warm", settings | {"max_samples": 5})
    seconds, card = shard_folder(run.root, scratch / "ours", settings, run.times)
    for name in ("warm", "ours"):
        shutil.rmtree(scratch / name)
    os.sync()
    if card.num_samples != len(run.files) * run.times:
        raise RuntimeError(f"{card.num_samples} of {len(run.files) * run.times} images were written")
    return seconds


def shard_folder(source: Path, workspace: Path, settings: dict[str, Any], times: int = 1) -> tuple[float, DatasetCard]:
    """Shard *source* by what the command runs; seconds from the first task to the card, and the card."""
    sources = [{"source": str(source), "name": f"copy-{number}"} for number in range(times)]
    stage = ShardStage.model_validate({"source": sources, "name": "bench", **settings})
    recipe = ChainRecipe(workspace=workspace.as_uri(), shard=(stage,))
    progress = FirstTask()
    (card,) = shard_connected(recipe, list_sources(recipe), progress)
    return time.monotonic() - progress.at, card


def _bare(loop: bare.Loop) -> Callable[[_Run], float]:
    return lambda run: bare.seconds_of(loop, run.files, run.folder, _CPUS)


def _tar(run: _Run) -> float:
    return _tar_seconds(run, "")


def _tar_synced(run: _Run) -> float:
    return _tar_seconds(run, " && sync all.tar")


def _tar_seconds(run: _Run, then: str) -> float:
    run.folder.mkdir()
    started = time.monotonic()
    command = "tar cf all.tar" + f" -C {run.root} ." * run.times + then
    subprocess.run(["sh", "-c", command], check=True, cwd=run.folder)
    return time.monotonic() - started


def _img2dataset(run: _Run) -> float:
    return img2dataset.seconds_of(run.files, run.root, run.folder, _CPUS)[0]
