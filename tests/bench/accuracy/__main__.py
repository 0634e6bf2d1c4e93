"""``make bench-accuracy``: train and test three seeds, and write their mean and spread to BENCHMARKS.md.

``python -m tests.bench.accuracy --seed 1`` does one seed: it goes on where it stopped, and is done at once when its
result is in the folder. Without ``--seed`` all three are done, then the section is written. Not a part of CI.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jobs.base.recipe import load_chain
from pipeline.corpus.embedded.make_fashion_mnist import SOURCE
from pipeline.models.cost import count_parameters
from tests.bench.__main__ import write_section
from tests.bench.accuracy.corpus import MissingError, make_corpus
from tests.bench.row import Row, table
from tests.support.command import SCRIPT

RECIPE = Path(__file__).with_name("recipe.yaml")
_SEEDS = (0, 1, 2)
_TARGET, _MOST_PARAMETERS = 0.90, 1_500_000
_ABOUT = """Fashion-MNIST whole: 60,000 training images, top-1 on the 10,000 test images, three seeds, by `vitpipe run
tests/bench/accuracy/recipe.yaml`: shards, two ranks of ZeRO-2 in bf16, the network of the last step. The test images
choose nothing: a run has one checkpoint after its last step, and that one is told."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.accuracy", description=__doc__)
    parser.add_argument("--seed", type=int, help="only this one, without writing BENCHMARKS.md")
    parser.add_argument("--folder", type=Path, default=Path("vitpipe-accuracy"), help="workspace and results")
    parser.add_argument("--data", type=Path, default=SOURCE, help="folder of the four files of Fashion-MNIST")
    given = parser.parse_args()
    try:
        train, test = make_corpus(given.folder.absolute() / "corpus", given.data)
    except MissingError as error:
        sys.exit(f"bench-accuracy: {error}")
    seeds = _SEEDS if given.seed is None else (given.seed,)
    found = [result_of(seed, given.folder.absolute(), train, test) for seed in seeds]
    for seed, result in zip(seeds, found, strict=True):
        print(f"seed {seed}: test top-1 {result['top1']:.2%}, training took {result['seconds']:.0f} s", flush=True)
    if given.seed is None:
        write_section("accuracy", _ABOUT, told(found))


def result_of(seed: int, folder: Path, train: Path, test: Path) -> dict[str, Any]:
    """Test top-1 and seconds of *seed*: as stored in *folder*, or trained now."""
    stored = folder / f"seed-{seed}.json"
    if stored.exists():
        result: dict[str, Any] = json.loads(stored.read_text())
        return result
    started = time.monotonic()
    summary = run_seed(seed, folder, train, test)
    scores = [score for score in summary["scores"] if score["evaluator"] == "classify" and score["metric"] == "top1"]
    last = max(scores, key=lambda score: score["step"])
    result = {"top1": last["value"], "seconds": _training_seconds(folder, seed) or time.monotonic() - started}
    stored.write_text(json.dumps(result))
    return result


def run_seed(seed: int, folder: Path, train: Path, test: Path, *overrides: str) -> dict[str, Any]:
    """The summary of the chain of one seed; shards are made once."""
    sources = [f"shard.0.source={train}", f"shard.1.source={test}"]
    named = [f"pretrain.run=seed-{seed}", f"pretrain.seed={seed}"]
    command = [str(SCRIPT), "run", str(RECIPE), *sources, *named, *overrides, "--workspace", str(folder / "workspace")]
    command += ["--out", str(folder / f"report-{seed}"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"bench-accuracy: seed {seed} ended with exit code {done.returncode}; the same command goes on")
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def _training_seconds(folder: Path, seed: int) -> float:
    """As the chain measured it, when it was not interrupted."""
    path = folder / "workspace" / "runs" / f"seed-{seed}" / "seconds.json"
    return float(json.loads(path.read_text()).get("pretrain", 0)) if path.exists() else 0.0


def told(found: list[dict[str, Any]]) -> str:
    """The table of the section."""
    top1 = [result["top1"] for result in found]
    minutes = statistics.mean(result["seconds"] for result in found) / 60
    mean, spread = statistics.mean(top1), statistics.stdev(top1)
    recipe = load_chain(str(RECIPE), []).pretrain
    assert recipe is not None
    parameters = count_parameters(recipe.model.model_copy(update={"num_classes": 10}))
    assert parameters <= _MOST_PARAMETERS
    what = f"test top-1 of {parameters / 1e6:.2f} M parameters, {recipe.steps:,} steps of {recipe.stream.batch_size}"
    each = ", ".join(f"{value:.2%}" for value in top1)
    ours = f"{mean:.2%} ± {spread:.2%} ({each}), {minutes:.1f} min of training each"
    return table([Row(what, ours, f"{_TARGET:.0%} wanted", mean / _TARGET, least=1.0)])


if __name__ == "__main__":
    main()
