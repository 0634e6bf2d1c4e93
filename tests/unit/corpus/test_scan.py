"""A scan reads each entry once, in order, and finds digests and rejects; a killed one goes on where it stopped."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.base.disk_table import DiskTable, DiskTableWriter
from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.corpus import worker
from pipeline.corpus.scan import Scanner
from pipeline.corpus.sources.readers import RangeReader
from pipeline.corpus.worker import Row
from pipeline.records.corpus import LISTING_SCHEMA, Corpus
from tests.support.pictures import bmp, noise, png
from tests.support.scanning import CHANGED, BytesReader, corpus_of, listing_of, origins_of, scanner_in

PICTURES = {f"{at:03d}.png": png(noise(8, 8, at)) for at in range(25)}
GOOD = png(noise(8, 9, 1))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_CHUNK_ROWS", 10)


def found_in(rows: DiskTable) -> list[tuple[str, str]]:
    return [(row["origin"], row["reason"]) for row in rows.table().to_pylist()]


def test_digests_and_reasons(tmp_path: Path) -> None:
    images = {"a.png": GOOD, "b.bmp": bmp(noise(8, 9, 1)), "c.jpg": b"<html>", "d": None, "e": b"", "f": CHANGED}
    images["g.png"] = GOOD[:100]
    scanned = scanner_in(tmp_path).scan(corpus_of(images, missing=["h"]), "pixels")
    assert found_in(scanned) == [
        ("a.png", ""),
        ("b.bmp", ""),
        ("c.jpg", "not-an-image"),
        ("d", "null-image"),
        ("e", "empty"),
        ("f", "changed"),
        ("g.png", "truncated"),
        ("h", "unreadable"),
    ]
    rows = scanned.table().to_pylist()
    assert rows[0]["sha256"] == hashlib.sha256(GOOD).digest() != rows[1]["sha256"]
    assert rows[0]["pixels"] == rows[1]["pixels"]
    assert [row["pixels"] for row in rows[2:]] == [None] * 6
    assert rows[7]["detail"] == "FileNotFoundError"


def test_files_are_not_decoded_when_only_they_are_compared(tmp_path: Path) -> None:
    rows = scanner_in(tmp_path).scan(corpus_of({"a": b"no image"}), "file").table().to_pylist()
    assert (rows[0]["reason"], rows[0]["sha256"]) == ("", hashlib.sha256(b"no image").digest())


def test_entries_keep_their_order_over_chunks_and_are_read_once(tmp_path: Path) -> None:
    corpus = corpus_of(PICTURES)
    scanned = scanner_in(tmp_path).scan(corpus, "file")
    assert origins_of(scanned) == list(PICTURES) == corpus.reader.reads
    assert scanned.table().select(LISTING_SCHEMA.names).equals(corpus.entries.table())
    assert len(list(tmp_path.glob("scan/*.parquet"))) == 3


def test_chunks_do_not_depend_on_how_rows_were_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_CHUNK_BYTES", 7_000)
    whole = listing_of([f"{at:04d}" for at in range(137)], {}, [at * 37 % 2_000 for at in range(137)])
    writer = DiskTableWriter(LISTING_SCHEMA)
    for start in range(0, 137, 4):
        writer.add(whole.slice(start, 4))
    in_pieces, at_once = (list(worker.chunks_of(rows)) for rows in (writer.close(), DiskTable.of(whole)))
    assert [table.num_rows for table in in_pieces] == [table.num_rows for table in at_once]
    assert pa.concat_tables(in_pieces).equals(whole)
    sizes = [table["num_bytes"].to_pylist() for table in in_pieces]
    assert max(map(sum, sizes)) <= 7_000
    for at, size in enumerate(sizes[:-1]):  # none is smaller than it has to be
        assert sum(len(earlier) for earlier in sizes[: at + 1]) % 10 == 0 or sum(size) + sizes[at + 1][0] > 7_000
    assert max(table.num_rows for table in in_pieces) <= 10


def test_one_image_larger_than_a_chunk_is_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_CHUNK_BYTES", 100)
    rows = DiskTable.of(listing_of(["a", "b", "c"], {}, [10, 5_000, 20]))
    assert [table["origin"].to_pylist() for table in worker.chunks_of(rows)] == [["a"], ["b"], ["c"]]


def test_empty_corpus(tmp_path: Path) -> None:
    assert scanner_in(tmp_path).scan(corpus_of({}), "pixels").num_rows == 0


def test_spilled_images_are_read_back_in_any_order(tmp_path: Path) -> None:
    images = PICTURES | {"null": None, "html": b"<html>"}
    corpus = corpus_of(images, missing=["gone"], random_access=False)
    scanner = scanner_in(tmp_path)
    entries = scanner.scan(corpus, "decode", spill=True).table()
    assert corpus.reader.reads == [*images, "gone"]
    good = entries.filter(pa.compute.equal(entries["reason"], ""))
    shuffled = good.take(pa.array([*range(24, -1, -3), *range(1, 25, 3), *range(2, 25, 3)])[:25])
    data = list(RangeReader(scanner.work).read(shuffled))
    assert data == [images[origin] for origin in shuffled["origin"].to_pylist()]


def test_a_second_scan_reads_nothing(tmp_path: Path) -> None:
    corpus = corpus_of(PICTURES)
    first = scanner_in(tmp_path).scan(corpus, "pixels", spill=True).table()
    corpus.reader.reads.clear()
    assert scanner_in(tmp_path).scan(corpus, "pixels", spill=True).table().equals(first)
    assert corpus.reader.reads == []


@pytest.mark.parametrize("change", ["depth", "listing", "made_of", "spill"])
def test_what_another_scan_left_is_not_taken(change: str, tmp_path: Path) -> None:
    corpus = corpus_of(PICTURES)
    scanner_in(tmp_path).scan(corpus, "file")
    corpus.reader.reads.clear()
    if change == "listing":
        labels = {"013.png": [0]}
        corpus = Corpus(corpus_of(PICTURES, labels).entries, corpus.classes, corpus.reader)
    if change == "made_of":
        corpus = Corpus(corpus.entries, corpus.classes, corpus.reader, made_of={"source": "other"})
    scanner_in(tmp_path).scan(corpus, "decode" if change == "depth" else "file", spill=change == "spill")
    assert set(corpus.reader.reads) >= set(list(PICTURES)[10:20] if change == "listing" else PICTURES)


def test_a_damaged_result_is_scanned_again(tmp_path: Path) -> None:
    corpus = corpus_of(PICTURES)
    first = scanner_in(tmp_path).scan(corpus, "file").table()
    path = tmp_path / "scan" / "000001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    assert scanner_in(tmp_path).scan(corpus, "file").table().equals(first)


KILLED = """
import sys
from pathlib import Path
from pipeline.corpus import worker
from tests.support.scanning import corpus_of, scanner_in
from tests.unit.corpus.test_scan import PICTURES
worker._CHUNK_ROWS = 10
folder = Path(sys.argv[1])
scanner_in(folder).scan(corpus_of(PICTURES), "pixels", spill=True)
"""


def test_a_killed_scan_goes_on(tmp_path: Path) -> None:
    environment = os.environ | {"VITPIPE_FAIL_AT": f"scan.before-result:{tmp_path / 'once'}"}
    calm = scanner_in(tmp_path / "calm").scan(corpus_of(PICTURES), "pixels", spill=True).table()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    first = subprocess.run(command, env=environment, timeout=100, check=False)
    assert first.returncode == -signal.SIGKILL
    assert not list((tmp_path / "killed").glob("scan/*.parquet"))
    assert subprocess.run(command, env=environment, timeout=100, check=False).returncode == 0
    corpus = corpus_of(PICTURES)
    assert scanner_in(tmp_path / "killed").scan(corpus, "pixels", spill=True).table().equals(calm)
    assert corpus.reader.reads == []
    copies = [path.relative_to(tmp_path / "calm") for path in (tmp_path / "calm").rglob("*.images")]
    assert len(copies) == 3
    for path in copies:
        assert (tmp_path / "killed" / path).read_bytes() == (tmp_path / "calm" / path).read_bytes()


class DeniedReader(BytesReader):
    def read(self, entries: pa.Table) -> object:
        raise StoreAccessError("s3://there: access denied", "check the credentials")


def test_an_error_of_a_task_keeps_its_type_and_words(tmp_path: Path) -> None:
    corpus = corpus_of(PICTURES)
    denied = Corpus(corpus.entries, corpus.classes, DeniedReader({}))
    with pytest.raises(StoreAccessError, match="access denied - check the credentials"):
        scanner_in(tmp_path).scan(denied, "file")


@pytest.mark.parametrize("lost", ["scan/entries-00000.bin", "scan/000001.parquet"])
def test_work_that_someone_removed_is_told(lost: str, tmp_path: Path) -> None:
    scanner = scanner_in(tmp_path)

    def run(task: object, rows: list[Row]) -> object:
        if lost.endswith(".bin"):
            scanner.work.delete(lost)
        yield from map(task, rows)
        scanner.work.delete(lost)

    with pytest.raises(FailedError, match=f"{lost} is gone"):
        Scanner(scanner.work, run, scanner.progress).scan(corpus_of(PICTURES), "file")


def test_ranges_come_with_few_requests_and_a_lost_object_is_told(tmp_path: Path) -> None:
    scanner = scanner_in(tmp_path)
    entries = scanner.scan(corpus_of(PICTURES), "bytes", spill=True).table()
    reader = RangeReader(CountingStore(scanner.work))
    assert list(reader.read(entries)) == list(PICTURES.values())
    assert CountingStore.num_reads == 3
    scanner.work.delete("scan/000001.images")
    images = reader.read(entries)
    assert [next(images) for _ in range(10)] == list(PICTURES.values())[:10]
    with pytest.raises(FailedError, match=r"scan/000001\.images is gone"):
        next(images)


class CountingStore:
    num_reads = 0

    def __init__(self, store: object) -> None:
        self._store = store
        self.uri = store.uri

    def read_range(self, *arguments: object) -> bytes:
        CountingStore.num_reads += 1
        return self._store.read_range(*arguments)
