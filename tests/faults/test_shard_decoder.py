"""Images that crash, hang or fill the decoder: each costs itself alone, and the reason says which it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.base.failpoints import VARIABLE
from tests.support.faults import NAME, REJECTED, Sharding, assert_no_process_left, make_photographs, put

FAULTS = {
    "segv": ("decoder-crashed", "2 times"),
    "sleep": ("decoder-hung", "2 times"),
    "spin": ("decoder-hung", "2 times"),
    "allocate": ("decoder-memory", ""),
}


def samples(workspace: Path) -> dict[str, str]:
    """Digest by origin of every sample that was written."""
    indexes = (workspace / "datasets" / NAME).glob("shard-*.parquet")
    rows = [row for index in indexes for row in pq.read_table(index, columns=["origin", "sha256"]).to_pylist()]
    return {row["origin"]: row["sha256"] for row in rows}


def test_bad_images_cost_themselves_alone(sharding: Sharding, tmp_path: Path) -> None:
    corpus = make_photographs(tmp_path / "corpus", 90)
    whole = (corpus / "flowers/dahlia/0003.jpeg").read_bytes()
    for fault in FAULTS:
        put(corpus, f"flowers/dahlia/{fault}.jpg", whole + f"vitpipe-fault:{fault}".encode())
    sharding = replace(sharding, corpus=corpus)
    assert sharding.run(tmp_path / "calm").code == 0
    ended = sharding.with_worker_env(**{VARIABLE: "decode"}).run(tmp_path / "workspace")
    assert ended.code == 0, ended.told
    rejects = pq.read_table(tmp_path / "workspace/datasets" / NAME / "rejects.parquet").to_pylist()
    found = {row["origin"]: (row["reason"], row["detail"]) for row in rejects}
    for fault, (reason, detail) in FAULTS.items():
        told = found.pop(f"flowers/dahlia/{fault}.jpg")
        assert told[0] == reason
        assert detail in told[1]
    assert {origin: reason for origin, (reason, _) in found.items()} == REJECTED
    neighbours = samples(tmp_path / "calm")
    for fault in FAULTS:
        del neighbours[f"flowers/dahlia/{fault}.jpg"]
    assert samples(tmp_path / "workspace") == neighbours
    assert_no_process_left(sharding.mark)
