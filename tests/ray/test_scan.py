"""Scanning on a real local cluster: what it gives is what the same tasks give in this process, whatever died."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.base.ray_session import connected
from pipeline.base.errors import StoreAccessError
from pipeline.base.progress import Silent
from pipeline.base.store import open_store
from pipeline.corpus import worker
from pipeline.corpus.ray_executor import on_cluster
from pipeline.corpus.scan import Scanner
from pipeline.records.corpus import Corpus
from tests.support.pictures import noise, png
from tests.support.scanning import BytesReader, corpus_of, scanner_in

pytestmark = pytest.mark.timeout(240)
IMAGES = {f"{at:03d}.png": png(noise(16, 16, at)) for at in range(60)} | {"html": b"<html>", "null": None}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster whose first worker to finish the images of a chunk is killed before it says so; the mark it leaves."""
    mark = tmp_path_factory.mktemp("fail") / "once"
    os.environ["VITPIPE_FAIL_AT"] = f"scan.before-result:{mark}"
    try:
        with connected(None):
            yield mark
    finally:
        del os.environ["VITPIPE_FAIL_AT"]


def test_a_killed_worker_costs_nothing(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_CHUNK_ROWS", 15)
    monkeypatch.delenv("VITPIPE_FAIL_AT")  # of this process; the workers have theirs
    corpus = corpus_of(IMAGES, missing=["gone"], random_access=False)
    calm = scanner_in(tmp_path / "calm").scan(corpus, "pixels", spill=True).table()
    scanner = Scanner(open_store(str(tmp_path / "spread")), on_cluster(), Silent())
    spread = scanner.scan(corpus, "pixels", spill=True).table()
    assert once.exists()
    assert spread.equals(calm)
    for path in (tmp_path / "calm").rglob("*.images"):
        twin = tmp_path / "spread" / path.relative_to(tmp_path / "calm")
        assert twin.read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "spread").rglob("*"))) == len(list((tmp_path / "calm").rglob("*")))


class DeniedReader(BytesReader):
    def read(self, entries: object) -> object:
        raise StoreAccessError("s3://there: access denied", "check the credentials")


def test_an_error_of_a_task_arrives_as_itself(once: Path, tmp_path: Path) -> None:
    corpus = corpus_of(IMAGES)
    denied = Corpus(corpus.entries, corpus.classes, DeniedReader({}))
    with pytest.raises(StoreAccessError, match=r"access denied - check the credentials"):
        Scanner(open_store(str(tmp_path)), on_cluster(), Silent()).scan(denied, "file")
