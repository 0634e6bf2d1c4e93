"""Parts do not move when images are added, take the shares that were asked for, and lose nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base import disk_table as base_rows
from pipeline.base.disk_table import DiskTable
from pipeline.base.errors import InputError
from pipeline.base.progress import Silent
from pipeline.corpus.recipe import SplitRecipe
from pipeline.corpus.splits import quotas, split
from pipeline.records.corpus import DUPLICATES_SCHEMA, ClassEntry, Corpus, Reject, rejects_table
from tests.support.scanning import BytesReader, Labels, listing_of, origins_of

HALVES = {"train": 0.5, "validation": 0.5}
TENTH = {"train": 0.9, "validation": 0.1}


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def recipe(parts: dict[str, float], stratified: bool = False) -> SplitRecipe:
    return SplitRecipe(parts=parts, stratified=stratified)


def listed(origins: list[str], labels: Labels | None = None, num_classes: int = 0, **fields: Any) -> Corpus:
    entries = DiskTable.of(listing_of(origins, labels or {}, [0] * len(origins)))
    classes = tuple(ClassEntry(name=f"c{number}") for number in range(num_classes))
    return Corpus(entries, classes, BytesReader({}), **fields)


def parts_of(corpus: Corpus, asked: SplitRecipe) -> dict[str, str]:
    """Part by origin."""
    return {
        origin: name for name, part in split(corpus, asked, Silent()).items() for origin in origins_of(part.entries)
    }


MANY = [f"folder/{at}.png" for at in range(5_000)]


def test_shares_and_order() -> None:
    parts = split(listed(MANY), recipe(TENTH), Silent())
    assert sorted(parts) == ["train", "validation"]
    assert 430 < parts["validation"].entries.num_rows < 570
    for part in parts.values():
        found = set(origins_of(part.entries))
        assert origins_of(part.entries) == [origin for origin in MANY if origin in found]
    assert parts["train"].made_of["split"] == {
        "part": "train",
        "share": 0.9,
        "shares": TENTH,
        "stratified": False,
    }


def test_the_assignment_is_this_one_for_ever() -> None:
    parts = parts_of(listed([f"{at}.png" for at in range(12)]), recipe(HALVES))
    assert "".join(parts[f"{at}.png"][0] for at in range(12)) == GOLDEN


GOLDEN = "ttvvvtttttvt"


@settings(max_examples=50, deadline=None)
@given(
    old=st.sets(st.text(min_size=1, max_size=8), min_size=25, max_size=60),
    new=st.sets(st.text(min_size=1, max_size=8), max_size=60),
)
def test_added_images_move_none(old: set[str], new: set[str]) -> None:
    before = parts_of(listed(sorted(old)), recipe(HALVES))
    after = parts_of(listed(sorted(old | new, reverse=True)), recipe(HALVES))
    assert before.items() <= after.items()
    assert after.keys() == old | new


def test_the_order_of_the_recipe_decides_nothing() -> None:
    turned = dict(reversed(TENTH.items()))
    assert list(turned) != list(TENTH)
    assert parts_of(listed(MANY), recipe(turned)) == parts_of(listed(MANY), recipe(TENTH))


@pytest.mark.parametrize("stratified", [False, True])
def test_rejects_and_duplicates_are_dealt_too(stratified: bool) -> None:
    rejects = DiskTable.of(rejects_table([Reject(f"bad/{at}", "truncated") for at in range(200)]))
    rows = [{"origin": f"copy/{at}", "reason": "same-file", "of": "x", "labels_differ": False} for at in range(300)]
    duplicates = DiskTable.of(pa.Table.from_pylist(rows, schema=DUPLICATES_SCHEMA))
    corpus = listed(MANY[:500], rejects=rejects, duplicates=duplicates)
    parts = split(corpus, recipe(HALVES, stratified), Silent())
    assert sum(part.num_input for part in parts.values()) == corpus.num_input == 1_000
    for name in ("entries", "rejects", "duplicates"):
        dealt = Counter(origin for part in parts.values() for origin in origins_of(getattr(part, name)))
        assert dealt == Counter(origins_of(getattr(corpus, name)))
        assert all(getattr(part, name).num_rows > 50 for part in parts.values())


def test_a_reject_stands_where_the_image_would_stand() -> None:
    corpus = listed(MANY[:100])
    bad = replace(
        listed(MANY[:10]), rejects=DiskTable.of(rejects_table([Reject(name, "empty") for name in MANY[10:100]]))
    )
    image = split(corpus, recipe(HALVES), Silent())
    reject = split(bad, recipe(HALVES), Silent())
    for name in HALVES:
        assert origins_of(image[name].entries) == origins_of(reject[name].entries) + origins_of(reject[name].rejects)


LABELS = {origin: [at % 7] if at % 50 else None for at, origin in enumerate(MANY[:1_000])}


@pytest.mark.parametrize("rows_of_a_bucket", [250_000, 64])
def test_stratified_shares_are_exact(rows_of_a_bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_rows, "_ROWS_OF_A_BUCKET", rows_of_a_bucket)
    asked = recipe({"train": 0.7, "validation": 0.2, "test": 0.1}, stratified=True)
    parts = split(listed(MANY[:1_000], LABELS, 7), asked, Silent())
    totals = Counter(str(found) for found in LABELS.values())
    for name, share in asked.parts.items():
        counts = Counter(str(found) for found in parts[name].entries.table()["labels"].to_pylist())
        assert counts.keys() == totals.keys()
        assert all(abs(counts[label] - share * total) < 1 for label, total in totals.items())
    assert sum(part.entries.num_rows for part in parts.values()) == 1_000


def test_strata_go_by_the_first_label() -> None:
    labels = {origin: [at % 2, 2 + at % 3] for at, origin in enumerate(MANY[:120])}
    parts = split(listed(MANY[:120], labels, 5), recipe(HALVES, stratified=True), Silent())
    for part in parts.values():
        assert Counter(found[0] for found in part.entries.table()["labels"].to_pylist()) == {0: 30, 1: 30}


def test_stratified_parts_move_little_when_images_are_added() -> None:
    asked = recipe(TENTH, stratified=True)
    before = parts_of(listed(MANY[:900], LABELS, 7), asked)
    after = parts_of(listed(MANY[:1_000], LABELS, 7), asked)
    moved = [origin for origin, part in before.items() if after[origin] != part]
    assert len(moved) < 20


def test_uncovered_classes_are_told_and_recorded() -> None:
    labels = {origin: [at % 100] for at, origin in enumerate(MANY[:400])}
    labels[MANY[0]] = [100]
    progress = Told()
    corpus = listed(MANY[:400], labels, 102)  # of the last class there is no image at all
    parts = split(corpus, recipe(TENTH), progress)
    present = {found[0] for found in parts["validation"].entries.table()["labels"].to_pylist()}
    missing = [f"c{number}" for number in range(101) if number not in present]
    assert len(missing) > 20
    uncovered = parts["validation"].made_of["split"]["uncovered"]
    assert uncovered == {"num_classes": len(missing), "first": missing[:20]}
    line = f"part validation has no image of {len(missing)} classes: {', '.join(missing[:20])}"
    assert line in progress.lines


@pytest.mark.parametrize("stratified", [False, True])
def test_an_empty_part_is_refused(stratified: bool) -> None:
    asked = recipe({"train": 0.999, "validation": 0.001}, stratified)
    with pytest.raises(InputError, match=r"part 'validation' would be empty: it takes 0\.001 of 1 images"):
        split(listed(["one.png"], {"one.png": [0]}, 1), asked, Silent())


@pytest.mark.parametrize("stratified", [False, True])
def test_a_single_part_takes_all(stratified: bool) -> None:
    assert set(parts_of(listed(MANY[:50]), recipe({"all": 1.0}, stratified)).values()) == {"all"}


@given(
    count=st.integers(0, 5_000),
    weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=6),
)
def test_quotas(count: int, weights: list[float]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    given_out = quotas(count, shares)
    assert sum(given_out) == count
    assert min(given_out) >= (1 if count >= len(shares) else 0)
    if all(count * share >= 1 for share in shares):
        assert all(abs(number - count * share) < 1 + 1e-9 for number, share in zip(given_out, shares, strict=True))
