"""What a person does wrong: one clear line, the right exit code, nothing half-made left."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.calm import Calm
from tests.support.command import SMALL, vitpipe

pytestmark = pytest.mark.timeout(200)
CANARY = "canary5ecretNeverToBePrinted"


def one_line(text: str) -> str:
    """The one line that the command said beside its progress."""
    lines = [line for line in text.splitlines() if line.startswith("vitpipe: ")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def folder_of_images(calm: Calm, folder: Path, count: int) -> None:
    """*count* real images as files, from the shards of the calm run."""
    shard = calm.workspace / "datasets" / "digits-test" / "shard-000000.tar"
    images = folder / "ones"
    images.mkdir(parents=True)
    shutil.unpack_archive(shard, images, "tar", filter="data")
    for path in sorted(images.iterdir())[2 * count :]:
        path.unlink()
    for path in images.glob("*.cls"):
        path.unlink()


def test_corrupt_image_among_good_ones_is_rejected_and_counted(calm: Calm, tmp_path: Path) -> None:
    folder_of_images(calm, tmp_path / "photos", 30)
    good = next((tmp_path / "photos" / "ones").glob("*.png")).read_bytes()
    (tmp_path / "photos" / "ones" / "cut.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "photos" / "ones" / "page.jpg").write_bytes(b"<html><body>not found</body></html>")
    done = vitpipe("shard", tmp_path / "photos", "--workspace", tmp_path / "ws", "--name", "photos", "--json")
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)["datasets"][0]
    assert (card["num_input"], card["num_samples"], card["num_rejected"]) == (32, 30, 2)
    rejects = _rejects(tmp_path / "ws", "photos")
    assert rejects == {"ones/cut.png": "truncated", "ones/page.jpg": "not-an-image"}
    assert vitpipe("verify", "photos", "--workspace", tmp_path / "ws", "--full").returncode == 0


def test_wholly_undecodable_corpus_fails_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(12):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(b"no image at all")
    done = vitpipe("shard", tmp_path / "photos", "--workspace", tmp_path / "ws", "--name", "photos")
    assert done.returncode == 1
    assert "12 of 12 images rejected (12 not-an-image" in one_line(done.stderr)
    assert not [path for path in (tmp_path / "ws").rglob("*") if path.is_file()]


def test_run_of_that_name_with_another_recipe_names_the_fields(calm: Calm) -> None:
    before = (calm.workspace / "runs" / "small" / "run.json").read_bytes()
    change = ("pretrain.optimizer.learning_rate=0.5", "pretrain.seed=9")
    done = vitpipe("run", SMALL, *change, "--workspace", calm.workspace)
    assert done.returncode == 2
    said = one_line(done.stderr)
    assert "optimizer.learning_rate: 0.003 -> 0.5" in said
    assert "seed: 0 -> 9" in said
    assert (calm.workspace / "runs" / "small" / "run.json").read_bytes() == before


def test_dataset_of_that_name_from_another_source_is_refused(calm: Calm, tmp_path: Path) -> None:
    folder_of_images(calm, tmp_path / "photos", 5)
    done = vitpipe("shard", tmp_path / "photos", "--workspace", calm.workspace, "--name", "digits-train")
    assert done.returncode == 2
    assert "digits-train exists and was made from something else" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": CANARY}, "access denied"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "no answer from endpoint"),
    ],
)
def test_wrong_credentials_and_endpoint_are_refused_without_telling_secrets(
    s3_workspace: str, change: dict[str, str], said: str
) -> None:
    done = vitpipe("run", SMALL, "--workspace", s3_workspace, env=dict(os.environ) | change)
    assert done.returncode == 2
    assert said in one_line(done.stderr)
    secrets = {CANARY, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]}
    assert not [secret for secret in secrets if secret in done.stdout + done.stderr]


def test_missing_bucket_is_named(s3_workspace: str) -> None:
    done = vitpipe("run", SMALL, "--workspace", "s3://no-such-bucket-here/x")
    assert done.returncode == 2
    assert "no-such-bucket-here" in one_line(done.stderr)


def _rejects(workspace: Path, dataset: str) -> dict[str, str]:
    import pyarrow.parquet as pq

    rows = pq.read_table(workspace / "datasets" / dataset / "rejects.parquet").to_pylist()
    return {row["origin"]: row["reason"] for row in rows}
