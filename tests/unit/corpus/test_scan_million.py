"""Duplicates and splits of a million images: nothing is lost, and memory stays far below what their digests take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MAX_RESIDENT_BYTES = 500_000_000

# Every tenth image is a copy of an earlier one; 100,000 evaluation images, of which the corpus has each.
SCRIPT = """
import hashlib, json, pathlib
import pyarrow as pa
from pipeline.base.progress import Silent
from pipeline.base.disk_table import DiskTableWriter
from pipeline.corpus import dedup
from pipeline.corpus.exact_duplicates import IMAGE_SCHEMA
from pipeline.corpus.recipe import DuplicatesRecipe, SplitRecipe
from pipeline.corpus.scan import SCANNED_SCHEMA, Scanner
from pipeline.corpus.splits import split
from pipeline.records.corpus import LISTING_SCHEMA, ClassEntry, Corpus

NUM, STEP = 1_000_000, 50_000

def digests(numbers):
    return [hashlib.sha256(number.to_bytes(8, "big")).digest() for number in numbers]

def scanned(start):
    places = range(start, start + STEP)
    files = digests(place - 9 if place % 10 == 9 else place for place in places)
    columns = {
        "origin": [f"train/n{place % 1000:05d}/image-{place:09d}.JPEG" for place in places],
        "file": [f"train/n{place % 1000:05d}/image-{place:09d}.JPEG" for place in places],
        "row": [-1] * STEP, "offset": [-1] * STEP, "num_bytes": [100_000] * STEP, "etag": ["0123456789abcdef"] * STEP,
        "source": [0] * STEP, "labels": [[place % 1000] for place in places],
        "sha256": files, "pixels": files, "reason": [""] * STEP, "detail": [""] * STEP,
    }
    return pa.table(columns, schema=SCANNED_SCHEMA)

def evaluation(*_):
    for start in range(0, 100_000, STEP):
        files = digests(10 * number + 5 for number in range(start, start + STEP))
        columns = {
            "position": [-1] * STEP, "origin": [f"exam/{number}" for number in range(start, start + STEP)],
            "labels": [None] * STEP, "sha256": files, "pixels": files,
        }
        yield pa.table(columns, schema=IMAGE_SCHEMA)

rows, entries = DiskTableWriter(SCANNED_SCHEMA), DiskTableWriter(LISTING_SCHEMA)
for start in range(0, NUM, STEP):
    table = scanned(start)
    rows.add(table)
    entries.add(table.select(LISTING_SCHEMA.names))
dedup._evaluation_images = evaluation
corpus = Corpus(entries.close(), tuple(ClassEntry(name=str(number)) for number in range(1000)), None)
asked = DuplicatesRecipe(within="pixels", against=("exam",))
done = dedup.remove_duplicates(corpus, rows.close(), asked, None, Scanner(None, None, Silent()))
reasons = {}
for table in done.duplicates.chunks():
    for found in table["reason"].value_counts().to_pylist():
        reasons[found["values"]] = reasons.get(found["values"], 0) + found["counts"]
parts = {}
for stratified in (False, True):
    recipe = SplitRecipe(parts={"train": 0.9, "validation": 0.1}, stratified=stratified)
    for name, part in split(done, recipe, Silent()).items():
        parts[f"{name} {stratified}"] = [part.entries.num_rows, part.num_input]
status = dict(line.split(":") for line in pathlib.Path("/proc/self/status").read_text().splitlines())
peak = int(status["VmHWM"].split()[0]) * 1024  # not ru_maxrss: that begins with what the process was forked from
print(json.dumps([reasons, parts, peak]))
"""


@pytest.mark.long
def test_a_million_images() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    reasons, parts, resident_bytes = json.loads(done.stdout)
    assert reasons == {"same-file": 100_000, "evaluation-file": 100_000}
    assert parts["train True"][0] + parts["validation True"][0] == 800_000
    assert parts["train False"][1] + parts["validation False"][1] == 1_000_000
    assert parts["train True"][0] == 720_000
    assert resident_bytes < MAX_RESIDENT_BYTES
