"""Sharding on a local Ray of two CPUs against bare loops, tar and img2dataset, from the first task to the last commit.

Images of 500 x 375 pixels and 60 to 110 kB in nested folders, in the page cache; workers and loops are up and warm.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
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

_COUNT = int(os.environ.get("VITPIPE_BENCH_IMAGES", "30000"))
_ROUNDS = 2
_CPUS = 2  # of connected()
_RESIZE = {"mode": "short", "size": 256}


class FirstTask(Silent):
    """Remembers when the tasks of a sharding were started, on the clock that all processes share."""

    def __init__(self) -> None:
        self.at = 0.0

    def start(self, label: str, total: int | None = None) -> None:
        """See Progress."""
        if label.startswith("shard "):
            self.at = time.monotonic()


def measure() -> list[Row]:
    """Each pair in turns, so that a machine which gets slower gets slower for both."""
    with tempfile.TemporaryDirectory(prefix="vitpipe-bench-") as name, connected(None):
        scratch = Path(name)
        files = corpus.make(scratch / "corpus", _COUNT)
        return [
            *_against("every image decoded, bytes kept", {}, {"a bare loop": _bare(bare.decode_and_digest)}, files),
            *_against("check=header", {"check": "header"}, {"tar cf and fsync": _tar_synced, "tar cf": _tar}, files),
            *_against(
                "short side 256, JPEG",
                {"resize": _RESIZE},
                {"a bare loop": _bare(bare.decode_and_resize), "img2dataset": _img2dataset},
                files,
            ),
        ]


_LEAST = {
    ("every image decoded, bytes kept", "a bare loop"): 0.85,
    ("check=header", "tar cf"): 0.6,
    ("short side 256, JPEG", "a bare loop"): 0.85,
    ("short side 256, JPEG", "img2dataset"): 1.3,
}
_Peer = Callable[[list[Path], Path, Path], float]


def _against(what: str, settings: dict[str, Any], peers: dict[str, _Peer], files: list[Path]) -> list[Row]:
    root = files[0].parents[2]
    scratch = root.parent
    seconds: dict[str, list[float]] = {name: [] for name in ("", *peers)}
    for _ in range(_ROUNDS):
        seconds[""].append(_ours(root, scratch, settings, len(files)))
        for name, peer in peers.items():
            seconds[name].append(_cleaned(lambda: peer(files, root, scratch / "peer"), scratch / "peer"))  # noqa: B023
    mine = statistics.fmean(seconds.pop(""))
    rows = []
    for name, theirs in seconds.items():
        their = statistics.fmean(theirs)
        told = f"sharding, {what}, against {name}"
        rate, peer_rate = (f"{len(files) / one:.0f} images/s" for one in (mine, their))
        rows.append(Row(told, rate, peer_rate, their / mine, _LEAST.get((what, name))))
    return rows


def _ours(root: Path, scratch: Path, settings: dict[str, Any], count: int) -> float:
    """Seconds of a whole sharding, after a small one that has workers and decoders started."""
    few = next(root.glob("*/*"))
    shard_folder(few, scratch / "warm", settings | {"max_samples": 5})
    shutil.rmtree(scratch / "warm")
    seconds, card = shard_folder(root, scratch / "ours", settings)
    shutil.rmtree(scratch / "ours")
    if card.num_samples != count:
        raise RuntimeError(f"{card.num_samples} of {count} images were written")
    return seconds


def shard_folder(source: Path, workspace: Path, settings: dict[str, Any]) -> tuple[float, DatasetCard]:
    """Shard *source* by what the command runs; seconds from the first task to the card, and the card."""
    stage = ShardStage.model_validate({"source": str(source), "name": "bench", **settings})
    recipe = ChainRecipe(workspace=workspace.as_uri(), shard=(stage,))
    progress = FirstTask()
    (card,) = shard_connected(recipe, list_sources(recipe), progress)
    return time.monotonic() - progress.at, card


def _bare(loop: bare.Loop) -> _Peer:
    return lambda files, root, folder: bare.seconds_of(loop, files, folder, _CPUS)


def _tar(files: list[Path], root: Path, folder: Path) -> float:
    return _seconds(f"tar cf {folder}/all.tar -C {root} .", folder)


def _tar_synced(files: list[Path], root: Path, folder: Path) -> float:
    return _seconds(f"tar cf {folder}/all.tar -C {root} . && sync {folder}/all.tar", folder)


def _seconds(command: str, folder: Path) -> float:
    folder.mkdir()
    started = time.monotonic()
    subprocess.run(["sh", "-c", command], check=True)
    return time.monotonic() - started


def _img2dataset(files: list[Path], root: Path, folder: Path) -> float:
    return img2dataset.seconds_of(files, root, folder, _CPUS)[0]


def _cleaned(call: Callable[[], float], folder: Path) -> float:
    """What *call* says; then *folder* goes, and what is still to be written is, so that the next one starts even."""
    try:
        return call()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()
