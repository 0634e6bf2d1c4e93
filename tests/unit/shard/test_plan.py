"""The shard plan is a pure function of what was listed and of the recipe."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.config import build
from pipeline.base.disk_table import DiskTable, DiskTableWriter
from pipeline.base.errors import InputError, RecipeError
from pipeline.records.corpus import LISTING_SCHEMA, ClassEntry
from pipeline.shard.plan import PlannedShard, listing_digest, num_shards, plan_shards, table_bytes, table_from_bytes
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.writer import plan_digest

ENTRIES = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8"), min_size=1), st.integers(0, 5_000), st.lists(st.integers(0, 9))),
    min_size=1,
    max_size=60,
    unique_by=lambda entry: entry[0],
)
RECIPES = st.builds(
    ShardRecipe, seed=st.integers(0, 2**64), max_samples=st.integers(1, 70), max_bytes=st.integers(1, 200_000)
)


PLACE = {"row": -1, "offset": -1, "etag": "", "source": 0}


def table_of(entries: list[Any]) -> pa.Table:
    """A listing of (origin, bytes, labels)."""
    rows = [
        {
            "origin": origin,
            "file": origin,
            "row": -1,
            "offset": -1,
            "num_bytes": num_bytes,
            "etag": "",
            "source": 0,
            "labels": labels,
        }
        for origin, num_bytes, labels in entries
    ]
    return pa.Table.from_pylist(rows, schema=LISTING_SCHEMA)


def rows_of(table: pa.Table, chunk: int = 1_000) -> DiskTable:
    """*table* as the rows of a corpus, added in pieces of *chunk*."""
    writer = DiskTableWriter(LISTING_SCHEMA)
    for start in range(0, table.num_rows, chunk):
        writer.add(table.slice(start, chunk))
    return writer.close()


def classes(*names: str) -> tuple[ClassEntry, ...]:
    """A class table of names alone."""
    return tuple(ClassEntry(name=name) for name in names)


def numbered(count: int, num_bytes: int = 10) -> pa.Table:
    """A listing of *count* images of one size."""
    return table_of([(f"{at:06d}", num_bytes, [at % 3]) for at in range(count)])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(ENTRIES, RECIPES, st.randoms(use_true_random=False), st.integers(1, 7))
def test_the_plan_does_not_depend_on_how_the_listing_came(
    entries: list[Any], recipe: ShardRecipe, draw: Any, chunk: int
) -> None:
    other = draw.sample(entries, len(entries))
    ours, theirs = rows_of(table_of(entries)), rows_of(table_of(other), chunk)
    assert [(shard.name, table_bytes(shard.entries)) for shard in plan_shards(ours, recipe)] == [
        (shard.name, table_bytes(shard.entries)) for shard in plan_shards(theirs, recipe)
    ]
    assert listing_digest(ours, classes("a", "b")) == listing_digest(theirs, classes("a", "b"))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(ENTRIES, RECIPES)
def test_every_entry_is_in_exactly_one_shard_and_limits_are_kept(entries: list[Any], recipe: ShardRecipe) -> None:
    shards = list(plan_shards(rows_of(table_of(entries)), recipe))
    planned = [row for shard in shards for row in shard.entries.to_pylist()]
    by_origin = sorted(planned, key=lambda row: row["origin"])
    assert by_origin == sorted(table_of(entries).to_pylist(), key=lambda row: row["origin"])
    sizes = [shard.entries.num_rows for shard in shards]
    assert min(sizes) >= 1
    assert max(sizes) <= recipe.max_samples
    assert max(sizes) - min(sizes) <= 1
    assert [shard.number for shard in shards] == list(range(len(shards)))
    total = sum(row["num_bytes"] for row in planned)
    assert total / len(shards) <= recipe.max_bytes or len(shards) == len(entries)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ENTRIES, RECIPES)
def test_a_plan_that_travelled_to_a_task_has_the_same_digest(entries: list[Any], recipe: ShardRecipe) -> None:
    for shard in plan_shards(rows_of(table_of(entries), 3), recipe):
        arrived = PlannedShard(shard.number, table_from_bytes(table_bytes(shard.entries)))
        assert arrived.entries == shard.entries
        assert plan_digest(arrived, "format") == plan_digest(shard, "format")


def order_of(listing: pa.Table, **fields: Any) -> list[str]:
    """The origins in the order of the plan."""
    shards = plan_shards(rows_of(listing), ShardRecipe(**fields))
    return [origin for shard in shards for origin in shard.entries["origin"].to_pylist()]


def test_the_order_is_shuffled_and_the_seed_changes_it() -> None:
    listing = numbered(200)
    orders = [order_of(listing, seed=seed) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert all(order != sorted(order) for order in orders)


def test_an_entrys_place_among_the_others_does_not_depend_on_the_others() -> None:
    all_of_them = order_of(numbered(200), seed=5)
    half = order_of(numbered(200).slice(0, 100), seed=5)
    assert half == [origin for origin in all_of_them if origin < "000100"]


def test_the_size_of_shards_does_not_change_the_order() -> None:
    assert order_of(numbered(100), max_samples=7) == order_of(numbered(100), max_samples=100)


def test_classes_are_mixed() -> None:
    """A corpus comes sorted by class; the first tenth of the plan must still hold all of ten classes."""
    listing = table_of([(f"class-{at // 100}/{at}", 1, [at // 100]) for at in range(1_000)])
    first = next(plan_shards(rows_of(listing), ShardRecipe(max_samples=100)))
    assert {label for labels in first.entries["labels"].to_pylist() for label in labels} == set(range(10))


@pytest.mark.parametrize(
    ("num_entries", "num_bytes", "max_samples", "max_bytes", "wanted"),
    [
        (1, 1, 10, 10, 1),
        (10, 10, 10, 100, 1),
        (11, 11, 10, 100, 2),
        (100, 1_000, 1_000, 100, 10),
        (100, 1_001, 1_000, 100, 11),
        (3, 10_000, 10, 1, 3),
        (10**9, 10**14, 10_000, 256_000_000, 390_625),
    ],
)
def test_num_shards(num_entries: int, num_bytes: int, max_samples: int, max_bytes: int, wanted: int) -> None:
    assert num_shards(num_entries, num_bytes, ShardRecipe(max_samples=max_samples, max_bytes=max_bytes)) == wanted


def test_the_golden_plan() -> None:
    """Changing it changes every dataset that was ever planned: raise ``identity._FORMAT`` then."""
    shards = [
        shard.entries["origin"].to_pylist() for shard in plan_shards(rows_of(numbered(9)), ShardRecipe(max_samples=4))
    ]
    assert shards == GOLDEN_PLAN


GOLDEN_PLAN = [["000000", "000004", "000007"], ["000002", "000005", "000008"], ["000003", "000001", "000006"]]


def test_an_origin_that_is_listed_twice_is_named() -> None:
    twice = table_of([("a", 1, []), ("b", 1, []), ("a", 2, [])])
    with pytest.raises(InputError, match="'a' is listed twice"):
        list(plan_shards(rows_of(twice), ShardRecipe()))


@pytest.mark.parametrize(
    ("column", "value"), [("origin", "other"), ("num_bytes", 11), ("labels", [2]), ("labels", []), ("labels", [0, 0])]
)
def test_the_listings_digest_knows_every_field(column: str, value: Any) -> None:
    rows = numbered(5).to_pylist()
    rows[3][column] = value
    changed = pa.Table.from_pylist(rows, schema=LISTING_SCHEMA)
    assert listing_digest(rows_of(changed), classes("a")) != listing_digest(rows_of(numbered(5)), classes("a"))


def test_the_listings_digest_knows_the_class_names() -> None:
    tables = [classes(*names) for names in [("a", "b"), ("b", "a"), ("a",), ("ab",), ()]]
    tables += [(ClassEntry(name="a", synset="b"),), (ClassEntry(name="a", parent="b"),)]
    digests = {listing_digest(rows_of(numbered(5)), table) for table in tables}
    assert len(digests) == 7


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"max_samples": 0}, "max_samples"),
        ({"max_bytes": "0 MB"}, "max_bytes"),
        ({"max_bytes": "12 parsec"}, "is not a size"),
        ({"seed": -1}, "seed"),
        ({"max_reject_ratio": 1.5}, "max_reject_ratio"),
        ({"max_sample": 5}, "did you mean 'max_samples'"),
        ({"check": "header", "resize": {"mode": "short"}}, "resize needs decoded images"),
        ({"check": "none"}, "check"),
    ],
)
def test_recipes_that_cannot_be_honoured(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        build(ShardRecipe, fields)


def test_sizes_are_read_with_units() -> None:
    assert build(ShardRecipe, {"max_bytes": "64 MB"}).max_bytes == 64_000_000
