"""Makes the golden workspace by the commands alone: ``python -m tests.golden.make OUT``.

OUT gets ``input/digits.parquet``, ``workspace/`` and ``expected.json``. Needs nothing of the pipeline but its commands.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.golden.facts import RECIPE, SUITE, files_of, losses_of, made_with, scores_of
from tests.support.command import vitpipe

_NUM_IMAGES = 200
_IMPORTED = Path("/var/tmp/golden-imported")  # the card of imported weights names where they were: nobody's folder
_LEFT_OUT = ("logs", "tensorboard")  # they name the host, and nothing is read from them


def run(*arguments: str | Path) -> dict[str, Any]:
    """The JSON object of a command that has to succeed."""
    done = vitpipe(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_input(path: Path, scratch: Path) -> None:
    """The first embedded digits, and after them two copies of images and one that is cut off."""
    run("shard", "embedded://digits/train", "--workspace", scratch, "--name", "digits")
    (file,) = scratch.glob("corpora/digits/train-*.parquet")
    table = pq.read_table(file)
    rows = table.slice(0, _NUM_IMAGES).to_pylist()
    copies = [dict(rows[number]) for number in (3, 50)]
    broken = dict(rows[7], image=dict(rows[7]["image"], bytes=rows[7]["image"]["bytes"][:60]))
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([*rows, *copies, broken], schema=table.schema), path)


def make(out: Path, scratch: Path) -> None:
    """Everything, into *out*, which may not exist."""
    workspace, source = out / "workspace", out / "input" / "digits.parquet"
    write_input(source, scratch / "embedded")
    run("run", RECIPE, f"shard.0.source={source}", "--workspace", workspace)
    run("export", "golden@10", "--ema", "--format", "npz", "--workspace", workspace, "--out", scratch / "vit.npz")
    run("import", scratch / "vit.npz", "--heads", "2", "--image-size", "8", "--out", _IMPORTED)
    weights = ("--weights", _IMPORTED, "--name", "imported")
    run("evaluate", *weights, "--workspace", workspace, "--suite", SUITE)
    shutil.rmtree(_IMPORTED)
    for name in _LEFT_OUT:
        shutil.rmtree(workspace / "runs" / "golden" / name)
    shutil.rmtree(workspace / "corpora", ignore_errors=True)
    for name in ("report.html", "summary.json"):  # large; names the folder
        (workspace / "reports" / "golden" / name).unlink()
    run("export", "golden@20", "--format", "hf", "--workspace", workspace, "--out", scratch / "hf")
    status = run("status", "--workspace", workspace)
    card = json.loads((workspace / "runs" / "golden" / "run.json").read_text())
    expected = {
        "made_with": made_with() | {"code": card["code_version"]},
        "datasets": status["datasets"],
        "fingerprint": card["fingerprint"],
        "losses": losses_of(workspace, "0001"),
        "scores": scores_of(run("scores", "--workspace", workspace, "--metric", "all")),
        "export_hf": files_of(scratch / "hf"),
        "files": files_of(workspace),
    }
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(Path(sys.argv[1]).absolute(), Path(folder))
