"""Parquet files as dataset hubs lay them out: images, labels of every kind, and what is refused or rejected."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import InputError
from pipeline.base.store import ObjectChangedError
from pipeline.corpus import open_corpus
from pipeline.records.corpus import LISTING_SCHEMA, Corpus
from tests.support.sources import rejects_of

IMAGES = [b"image 0", b"image 1", b"image 2", b"image 3"]


def table_of(labels: Any = None, images: Any = IMAGES, names: list[str] | None = None) -> pa.Table:
    """``image`` (binary, or as given) and ``label``, with class *names* as the hub's ClassLabel declares them."""
    columns = {"image": images if isinstance(images, pa.Array) else pa.array(images, pa.binary())}
    if labels is not None:
        columns["label"] = labels
    table = pa.table(columns)
    if names is None:
        return table
    return with_metadata(table, {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})


def with_metadata(table: pa.Table, metadata: Any) -> pa.Table:
    """*table* with the hub's entry in its schema."""
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    return table.replace_schema_metadata({"huggingface": text})


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """*table* as a file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def open_tables(folder: Path, *tables: pa.Table, row_group_size: int | None = None) -> Corpus:
    """The corpus of *tables*, written as one file each."""
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=row_group_size)
    return open_corpus(str(folder))


def labels_of(corpus: Corpus) -> list[list[int]]:
    """The labels of all entries."""
    return corpus.entries.table()["labels"].to_pylist()


def images_of(corpus: Corpus) -> list[bytes | None]:
    """The bytes of all entries, as the reader gives them."""
    return list(corpus.reader.read(corpus.entries.table()))


def test_binary_images_and_numbers(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of([2, 0, 1, 1]))
    assert corpus.entries.table().schema == LISTING_SCHEMA
    assert corpus.class_names == ("0", "1", "2")
    assert labels_of(corpus) == [[2], [0], [1], [1]]
    assert corpus.entries.table()["origin"].to_pylist() == [f"part-0.parquet#{row}" for row in range(4)]
    assert images_of(corpus) == IMAGES


def test_images_as_structs_with_the_names_of_a_class_label(tmp_path: Path) -> None:
    images = pa.array([{"bytes": image, "path": "x.png"} for image in IMAGES])
    corpus = open_tables(tmp_path, table_of([1, 0, 1, 0], images, ["cat", "dog"]))
    assert corpus.class_names == ("cat", "dog")
    assert labels_of(corpus) == [[1], [0], [1], [0]]
    assert images_of(corpus) == IMAGES


def test_large_binary_images(tmp_path: Path) -> None:
    assert images_of(open_tables(tmp_path, table_of([0] * 4, pa.array(IMAGES, pa.large_binary())))) == IMAGES


def test_declared_classes_are_kept_when_no_image_has_them(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of([0, 0, 0, 0], names=["cat", "dog", "owl"]))
    assert corpus.class_names == ("cat", "dog", "owl")


@pytest.mark.parametrize(
    "labels", [["dog", "cat", "dog", "ant"], pa.array(["dog", "cat", "dog", "ant"]).dictionary_encode()]
)
def test_string_labels_are_numbered_by_name(tmp_path: Path, labels: Any) -> None:
    corpus = open_tables(tmp_path, table_of(labels))
    assert corpus.class_names == ("ant", "cat", "dog")
    assert labels_of(corpus) == [[2], [1], [2], [0]]


def test_boolean_labels(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of([True, False, True, True]))
    assert corpus.class_names == ("0", "1")
    assert labels_of(corpus) == [[1], [0], [1], [1]]


def test_list_labels(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of([[0, 2], [1], [2, 1, 0], [0]]))
    assert corpus.class_names == ("0", "1", "2")
    assert labels_of(corpus) == [[0, 2], [1], [2, 1, 0], [0]]


@pytest.mark.parametrize("shape", [{"feature": {"names": ["a", "b"]}, "_type": "Sequence"}, [{"names": ["a", "b"]}]])
def test_list_labels_with_declared_names(tmp_path: Path, shape: Any) -> None:
    table = with_metadata(table_of([[0, 1], [1], [0], [0]]), {"info": {"features": {"label": shape}}})
    assert open_tables(tmp_path, table).class_names == ("a", "b")


def test_list_labels_of_strings(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of([["b", "a"], ["c"], ["a"], ["b"]]))
    assert corpus.class_names == ("a", "b", "c")
    assert labels_of(corpus) == [[1, 0], [2], [0], [1]]


def test_a_null_label_is_a_reject(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of(pa.array([1, None, 0, 1], pa.int64()), names=["cat", "dog"]))
    assert rejects_of(corpus) == [("part-0.parquet#1", "label-missing")]
    assert labels_of(corpus) == [[1], [0], [1]]
    assert images_of(corpus) == [IMAGES[0], IMAGES[2], IMAGES[3]]


def test_a_null_list_and_a_null_inside_one_are_rejects_and_an_empty_list_is_none(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of(pa.array([[1, None], None, [], [1, 1, 0]], pa.list_(pa.int64()))))
    assert rejects_of(corpus) == [("part-0.parquet#0", "label-missing"), ("part-0.parquet#1", "label-missing")]
    assert labels_of(corpus) == [[], [1, 0]]
    assert corpus.made_of["labels"] == "multi"


@pytest.mark.parametrize("kind", [pa.large_list(pa.int16()), pa.list_(pa.int64(), 2), pa.list_(pa.large_string())])
def test_lists_of_every_type(tmp_path: Path, kind: pa.DataType) -> None:
    values: list[Any] = ["0", "1"] if pa.types.is_large_string(kind.value_type) else [0, 1]
    labels = pa.array([values, None, values[::-1], values], kind)
    corpus = open_tables(tmp_path, table_of(labels.slice(1)[:3], IMAGES[:3]))
    assert labels_of(corpus) == [[1, 0], [0, 1]]
    assert rejects_of(corpus) == [("part-0.parquet#0", "label-missing")]


@pytest.mark.parametrize("label", [2, -1, 2**40, -(2**60)])
def test_a_label_outside_the_declared_classes_is_a_reject(tmp_path: Path, label: int) -> None:
    corpus = open_tables(tmp_path, table_of([0, label, 1, 1], names=["cat", "dog"]))
    assert rejects_of(corpus) == [("part-0.parquet#1", "label-out-of-range")]
    assert corpus.rejects.table()["detail"].to_pylist() == [str(label)]
    assert labels_of(corpus) == [[0], [1], [1]]


def test_a_string_that_is_no_declared_class_is_a_reject(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of(["cat", "cow", "dog", "dog"], names=["cat", "dog"]))
    assert rejects_of(corpus) == [("part-0.parquet#1", "label-unknown")]


def test_an_absurd_number_does_not_make_as_many_classes(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of([0, 2**40, 1, -3]))
    assert corpus.class_names == ("0", "1")
    assert rejects_of(corpus) == [
        ("part-0.parquet#1", "label-out-of-range"),
        ("part-0.parquet#3", "label-out-of-range"),
    ]


def test_labels_that_are_no_whole_numbers_are_rejects(tmp_path: Path) -> None:
    labels = [float("nan"), 1.5, None, 1.0, -1.0, 1e100, float("inf"), -0.0]
    corpus = open_tables(tmp_path, table_of(labels, IMAGES * 2))
    reasons = ["label-out-of-range"] * 2 + ["label-missing"] + ["label-out-of-range"] * 3
    assert [reason for _, reason in rejects_of(corpus)] == reasons
    assert labels_of(corpus) == [[1], [0]]


def test_without_a_label_column_nothing_is_labelled(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of())
    assert (corpus.class_names, labels_of(corpus), rejects_of(corpus)) == ((), [[]] * 4, [])


def test_a_label_column_that_is_null_throughout_is_none(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of(pa.nulls(4, pa.int64())))
    assert (corpus.class_names, labels_of(corpus), rejects_of(corpus)) == ((), [[]] * 4, [])


@pytest.mark.parametrize(
    "images",
    [
        pa.array([b"a", None, b"c", b"d"], pa.binary()),
        pa.array([{"bytes": b"a"}, None, {"bytes": b"c"}, {"bytes": b"d"}]),
        pa.array([{"bytes": b"a"}, {"bytes": None}, {"bytes": b"c"}, {"bytes": b"d"}]),
    ],
)
def test_a_null_image_is_read_as_none(tmp_path: Path, images: pa.Array) -> None:
    corpus = open_tables(tmp_path, table_of([0, 1, 0, 1], images))
    assert images_of(corpus) == [b"a", None, b"c", b"d"]


def test_several_files_with_many_row_groups_in_any_order(tmp_path: Path) -> None:
    tables = [
        table_of([at % 3 for at in range(10)], [f"{number}/{at}".encode() for at in range(10)]) for number in range(3)
    ]
    corpus = open_tables(tmp_path, *tables, row_group_size=3)
    assert corpus.entries.num_rows == 30
    order = [29, 0, 11, 10, 4, 4, 17, 3]
    wanted = [f"{at // 10}/{at % 10}".encode() for at in order if at != 4]
    entries = corpus.entries.table().take([at for at in order if at != 4])
    assert list(corpus.reader.read(entries)) == wanted


def test_row_groups_of_one(tmp_path: Path) -> None:
    assert images_of(open_tables(tmp_path, table_of([0, 1, 0, 1]), row_group_size=1)) == IMAGES


def test_only_the_row_groups_that_hold_wanted_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_tables(tmp_path, table_of([0, 1, 0, 1]), row_group_size=1)
    entries = corpus.entries.table().take([3, 1])
    groups: list[int] = []
    original = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *arguments: Any, **options: Any) -> Any:
        groups.extend(options["row_groups"])
        return original(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert list(corpus.reader.read(entries)) == [IMAGES[3], IMAGES[1]]
    assert groups == [1, 3]


def test_a_row_group_of_a_million_is_read_once_and_never_whole(tmp_path: Path) -> None:
    """In order, over many windows; the images of it are 256 MB, which is neither read again nor held."""
    num_rows, size = 1_000_000, 256
    data = np.random.default_rng(0).integers(0, 256, num_rows * size, np.uint8)
    offsets = pa.py_buffer(np.arange(0, num_rows * size + 1, size, dtype=np.int32))
    images = pa.Array.from_buffers(pa.binary(), num_rows, [None, offsets, pa.py_buffer(data)])
    path = tmp_path / "big.parquet"
    pq.write_table(table_of(pa.array(np.arange(num_rows) % 5), images), path, row_group_size=num_rows)
    assert pq.ParquetFile(path).num_row_groups == 1
    corpus = open_corpus(str(path))
    assert corpus.entries.num_rows == num_rows
    assert labels_of(corpus)[::99_999] == [[at % 5] for at in range(0, num_rows, 99_999)]
    entries = corpus.entries.table().slice(400_000, 30_000)
    before, same = pa.total_allocated_bytes(), True
    tracemalloc.start()  # what the file gives is in Python's memory before it is in arrow's
    most = before
    for at, image in enumerate(corpus.reader.read(entries), 400_000):
        same = same and image == data[at * size : (at + 1) * size].tobytes()
        most = max(most, pa.total_allocated_bytes()) if at % 1_000 == 0 else most
    _, most_of_python = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert same
    assert most - before + most_of_python < 60_000_000


def test_sizes_are_estimated_without_reading_images(tmp_path: Path) -> None:
    images = [bytes([at]) * 10_000 for at in range(4)]
    pq.write_table(table_of([0, 1, 0, 1], images), tmp_path / "x.parquet", compression="NONE", use_dictionary=False)
    sizes = open_corpus(str(tmp_path)).entries.table()["num_bytes"].to_pylist()
    assert all(10_000 <= size <= 10_100 for size in sizes)


def test_labels_of_different_widths_are_one_corpus(tmp_path: Path) -> None:
    tables = [table_of(pa.array([0, 1, 0, 1], kind)) for kind in (pa.int64(), pa.int8(), pa.uint16())]
    assert labels_of(open_tables(tmp_path, *tables)) == [[0], [1], [0], [1]] * 3


def test_a_file_whose_labels_are_all_null_costs_its_own_rows(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of([0, 1, 0, 1]), table_of(pa.nulls(4)))
    assert rejects_of(corpus) == [(f"part-1.parquet#{row}", "label-missing") for row in range(4)]


def refusal(folder: Path, *tables: pa.Table) -> str:
    """The text of the InputError that *tables* give."""
    with pytest.raises(InputError) as caught:
        open_tables(folder, *tables)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_files_with_numbers_and_strings_are_refused(tmp_path: Path) -> None:
    assert "different types" in refusal(tmp_path, table_of([0, 1, 0, 1]), table_of(["a", "b", "a", "b"]))


def test_a_file_without_the_others_label_column_is_refused_by_name(tmp_path: Path) -> None:
    assert "part-1.parquet" in refusal(tmp_path, table_of([0, 1, 0, 1]), table_of())


def test_files_that_declare_different_classes_are_refused(tmp_path: Path) -> None:
    tables = [table_of([0, 1, 0, 1], names=names) for names in (["cat", "dog"], ["dog", "cat"])]
    assert "different class names" in refusal(tmp_path, *tables)


def test_the_files_that_differ_are_both_named(tmp_path: Path) -> None:
    for tables in ([table_of([0, 1, 0, 1]), table_of()], [table_of([0] * 4), table_of(["a"] * 4)]):
        text = refusal(tmp_path, *tables)
        assert "part-1.parquet" in text
        assert "part-0.parquet" in text
        assert "\n" not in text


def test_labels_of_no_known_type_are_refused(tmp_path: Path) -> None:
    labels = pa.array([{"a": 1}] * 4)
    assert "labels of type struct" in refusal(tmp_path, table_of(labels))


def test_a_file_that_was_replaced_after_listing_is_not_read(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of([0, 1, 0, 1]))
    entries = corpus.entries.table()
    (tmp_path / "part-0.parquet").unlink()
    pq.write_table(table_of([0, 1, 0, 1], IMAGES[::-1]), tmp_path / "part-0.parquet")
    with pytest.raises(ObjectChangedError):
        next(corpus.reader.read(entries))


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    assert "no image column" in refusal(tmp_path, pa.table({"text": ["a"], "label": [0]}))


def test_metadata_that_is_not_json_is_refused(tmp_path: Path) -> None:
    assert "not JSON" in refusal(tmp_path, with_metadata(table_of([0, 1, 0, 1]), "{nope"))


@pytest.mark.parametrize("metadata", ["null", "[]", '{"info": null}', '{"info": {"features": {"label": []}}}', "3"])
def test_metadata_of_another_shape_declares_nothing(tmp_path: Path, metadata: str) -> None:
    assert open_tables(tmp_path, with_metadata(table_of([0, 1, 0, 1]), metadata)).class_names == ("0", "1")


@pytest.mark.parametrize("cut", [0, 1, 10, 100, -1, -8])
def test_what_is_no_parquet_file_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    data = parquet_bytes(table_of([0, 1, 0, 1]))
    (tmp_path / "broken.parquet").write_bytes(data[:cut])
    with pytest.raises(InputError, match=r"broken\.parquet is not a parquet file") as caught:
        open_corpus(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_label_column_is_refused_by_name(tmp_path: Path) -> None:
    labels = [f"class {at % 7}" for at in range(400)]
    data = bytearray(parquet_bytes(table_of(labels, [b"x"] * 400)))
    start = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(0).column(1).dictionary_page_offset
    data[start : start + 60] = bytes(60)
    (tmp_path / "broken.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"broken\.parquet is not a parquet file"):
        open_corpus(str(tmp_path))


def test_a_table_without_rows_is_an_empty_corpus(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of([0, 1, 0, 1]).slice(0, 0))
    assert corpus.entries.num_rows == 0
    assert corpus.entries.table().schema == LISTING_SCHEMA


def test_one_file_is_a_corpus(tmp_path: Path) -> None:
    open_tables(tmp_path, table_of([0, 1, 0, 1]), table_of([0, 1, 0, 1]))
    assert open_corpus(str(tmp_path / "part-1.parquet")).entries.table()["file"].to_pylist() == ["part-1.parquet"] * 4


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_file_that_is_lost_after_listing_costs_its_own_rows_only(tmp_path: Path, damage: str) -> None:
    corpus = open_tables(tmp_path, table_of([0, 1, 0, 1]), table_of([0, 1, 0, 1]))
    if damage == "missing":
        (tmp_path / "part-0.parquet").unlink()
    else:
        data = (tmp_path / "part-0.parquet").read_bytes()
        (tmp_path / "part-0.parquet").write_bytes(data[:4] + bytes(60) + data[64:])
    images = corpus.reader.read(corpus.entries.table().take([0, 4, 1, 7]))
    with pytest.raises(OSError, match="part-0"):
        next(images)
    assert next(images) == IMAGES[0]
    with pytest.raises(OSError, match="part-0"):
        next(images)
    assert next(images) == IMAGES[3]
    assert next(images, "end") == "end"


def test_the_reader_travels_to_the_tasks(tmp_path: Path) -> None:
    corpus = open_tables(tmp_path, table_of([0, 1, 0, 1]))
    assert list(pickle.loads(pickle.dumps(corpus.reader)).read(corpus.entries.table())) == IMAGES
