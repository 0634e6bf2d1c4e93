"""Runs img2dataset over a list of URLs, in its own environment."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from tests.bench.loopback import serving
from tests.bench.peers import environment
from tests.bench.row import Spent

_SETTINGS = [
    "--input_format=txt",
    "--output_format=webdataset",
    "--resize_mode=keep_ratio",
    "--image_size=256",
    "--encode_quality=95",
    "--encode_format=jpg",
    "--enable_wandb=False",
]


def run(files: list[Path], root: Path, folder: Path, num_processes: int) -> Spent:
    """From its first request to the end of its last tar: the seconds in which it starts are left out, as ours are."""
    command = environment("img2dataset") / "img2dataset"
    folder.mkdir(parents=True)
    with serving(root) as served:
        urls = folder / "urls.txt"
        urls.write_text("".join(f"http://127.0.0.1:{served.port}/{file.relative_to(root)}\n" for file in files))
        output = folder / "output"
        call = [str(command), str(urls), f"--output_folder={output}", f"--processes_count={num_processes}"]
        call += [*_SETTINGS, f"--number_sample_per_shard={_samples_of_a_shard(len(files), num_processes)}"]
        quiet = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        with (folder / "log.txt").open("w") as log:
            subprocess.run(call, check=True, stdout=log, stderr=log, env=os.environ | quiet)
        since_the_last = time.time() - max(file.stat().st_mtime for file in output.glob("*.tar"))
        ended = time.monotonic() - since_the_last
    if served.facts["requests"] != len(files):
        raise RuntimeError(f"img2dataset asked for {served.facts['requests']:.0f} of {len(files)} images: see {folder}")
    return Spent(ended - served.facts["first"])


def _samples_of_a_shard(num_files: int, num_processes: int) -> int:
    """Few thousand, and as many shards for each process."""
    rounds = max(1, round(num_files / num_processes / 3_000))
    return -(-num_files // (rounds * num_processes))
