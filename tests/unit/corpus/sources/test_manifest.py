"""Manifests: tables of paths and labels by whoever wrote them; what is taken, and what a row may not point at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.corpus import open_corpus
from pipeline.corpus.sources.manifest import RefusedPathError, resolve_path
from pipeline.records.corpus import Corpus
from tests.support.sources import fill, images_of, labels_of, rejects_of


def open_text(folder: Path, text: str | bytes, name: str = "m.csv") -> Corpus:
    """The corpus of a manifest with *text*."""
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_corpus(str(folder / name))


def test_a_table_of_paths_and_labels(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "b c/2.png")
    corpus = open_text(tmp_path, "path,label,width\na/1.jpg,cat,3\n./b c/../b c/2.png,dog,4\n")
    assert labels_of(corpus) == {"a/1.jpg": ["cat"], "b c/2.png": ["dog"]}
    assert images_of(corpus) == {"a/1.jpg": b"a/1.jpg", "b c/2.png": b"b c/2.png"}
    assert corpus.entries.table()["num_bytes"].to_pylist() == [7, 9]
    assert corpus.made_of["sources"][0]["kind"] == "manifest"
    assert corpus.random_access


@pytest.mark.parametrize("column", ["path", "file", "image", "uri", "File_Name"])
@pytest.mark.parametrize("label", ["label", "labels", "CLASS"])
def test_names_of_columns(tmp_path: Path, column: str, label: str) -> None:
    assert labels_of(open_text(tmp_path, f"id,{column},{label}\n7,x.jpg,3\n"))["x.jpg"] == ["3"]


@pytest.mark.parametrize(
    "text",
    [
        b"path,label\r\nx.jpg,cat\r\ny.jpg,dog\r\n",
        b"\xef\xbb\xbfpath,label\nx.jpg,cat\ny.jpg,dog",
        b'\xef\xbb\xbf"path","label"\r\n"x.jpg","cat"\r\n\r\ny.jpg, dog \r\n',
    ],
)
def test_line_ends_and_marks_of_byte_order(tmp_path: Path, text: bytes) -> None:
    assert labels_of(open_text(tmp_path, text)) == {"x.jpg": ["cat"], "y.jpg": ["dog"]}


def test_quoted_fields_may_hold_anything(tmp_path: Path) -> None:
    corpus = open_text(tmp_path, 'path,label\n"a,\nb ""1"".jpg","cat, big"\n')
    assert labels_of(corpus) == {'a,\nb "1".jpg': ["cat, big"]}


def test_tabs_and_json_lines(tmp_path: Path) -> None:
    assert labels_of(open_text(tmp_path, "path\tlabel\na,b.jpg\tcat\n", "m.tsv")) == {"a,b.jpg": ["cat"]}
    lines = [{"path": "x.jpg", "label": 1}, {"image": "y.jpg", "labels": [0, 1]}, {"file": "z.jpg", "class": "1"}]
    corpus = open_text(tmp_path, "\ufeff" + "\r\n".join(map(json.dumps, lines)) + "\n\n", "m.jsonl")
    assert labels_of(corpus) == {"x.jpg": ["1"], "y.jpg": ["0", "1"], "z.jpg": ["1"]}
    assert corpus.made_of["labels"] == "multi"


def test_several_labels_in_a_cell(tmp_path: Path) -> None:
    text = 'path,labels\n1.jpg,cat|dog\n2.jpg,"[""dog"", ""owl""]"\n3.jpg,[]\n4.jpg,cat\n5.jpg,cat|\n6.jpg,cat|cat\n'
    corpus = open_text(tmp_path, text)
    assert labels_of(corpus) == {
        "1.jpg": ["cat", "dog"],
        "2.jpg": ["dog", "owl"],
        "3.jpg": [],
        "4.jpg": ["cat"],
        "6.jpg": ["cat"],
    }
    assert rejects_of(corpus) == [("5.jpg", "label-missing")]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("", "label-missing"),
        ("  ", "label-missing"),
        ("nan", "label-out-of-range"),
        ("NaN", "label-out-of-range"),
        ("-1", "label-out-of-range"),
        ("1.5", "label-out-of-range"),
        ("1e100", "label-out-of-range"),
        ("1" + "0" * 100, "label-out-of-range"),
        ("1000000", "label-out-of-range"),
        ("inf", "label-out-of-range"),
        ("0|-1", "label-out-of-range"),
        ("[0", "label-damaged"),
        ("[{}]", "label-damaged"),
    ],
)
@pytest.mark.parametrize("others", ["0", "cat"])
def test_labels_that_are_none(tmp_path: Path, cell: str, reason: str, others: str) -> None:
    if others == "cat" and cell in ("0|-1", "1000000"):
        others = "0"
    corpus = open_text(tmp_path, f"path,label\n1.jpg,{others}\n2.jpg,{cell}\n")
    assert labels_of(corpus) == {"1.jpg": [others]}
    assert [found for _, found in rejects_of(corpus)] == [reason]


def test_a_name_that_the_class_table_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "m.csv").write_text("path,label\n1.jpg,dog\n2.jpg,cow\n")
    corpus = open_corpus(str(tmp_path / "m.csv"), classes=str(tmp_path / "classes.txt"))
    assert corpus.class_names == ("cat", "dog")
    assert labels_of(corpus) == {"1.jpg": ["dog"]}
    assert rejects_of(corpus) == [("2.jpg", "label-unknown")]


def test_without_labels(tmp_path: Path) -> None:
    for text in ("path\n1.jpg\n2.jpg\n", "path,label\n1.jpg,\n2.jpg,\n"):
        corpus = open_text(tmp_path, text)
        assert (labels_of(corpus), corpus.made_of["labels"]) == ({"1.jpg": [], "2.jpg": []}, "none")


def test_rows_that_are_none(tmp_path: Path) -> None:
    corpus = open_text(tmp_path, "path,label\n,cat\n1.jpg,cat,3\n2.jpg\n3.jpg,cat\n")
    assert labels_of(corpus) == {"3.jpg": ["cat"]}
    reasons = [("m.csv:1", "path-missing"), ("m.csv:2", "row-damaged"), ("2.jpg", "label-missing")]
    assert sorted(rejects_of(corpus)) == sorted(reasons)
    lines = (
        '{"path": "1.jpg"}\n{"path": 3}\n{"path":\n[1]\n' + '{"path": "' + "x" * 5_000_000 + '"}\n{"path": "2.jpg"}\n'
    )
    corpus = open_text(tmp_path, lines, "m.jsonl")
    assert sorted(labels_of(corpus)) == ["1.jpg", "2.jpg"]
    assert [reason for _, reason in rejects_of(corpus)] == ["path-missing", *["row-damaged"] * 3]


def test_an_image_that_is_named_again(tmp_path: Path) -> None:
    rows = [f"{number}.jpg,cat\n" for number in range(100)]
    corpus = open_text(tmp_path, "path,label\n" + "".join([*rows, "7.jpg,dog\n", "./7.jpg,dog\n", "x/../8.jpg,cat\n"]))
    assert labels_of(corpus) == {f"{number}.jpg": ["cat"] for number in range(100)}
    assert sorted(rejects_of(corpus)) == [("7.jpg", "path-repeated")] * 2 + [("8.jpg", "path-repeated")]
    assert corpus.num_input == 103


def test_a_missing_file_costs_its_own_row_only(tmp_path: Path) -> None:
    fill(tmp_path, "1.jpg", "3.jpg")
    corpus = open_text(tmp_path, f"path\n1.jpg\n2.jpg\n3.jpg\n{'x' * 5000}.jpg\n.\n")
    images = corpus.reader.read(corpus.entries.table())
    assert next(images) == b"1.jpg"
    with pytest.raises(FileNotFoundError):
        next(images)
    assert next(images) == b"3.jpg"
    for _ in range(2):
        with pytest.raises(OSError):  # noqa: PT011 - a name that no file can have, and a folder
            next(images)
    assert next(images, "end") == "end"


def test_absolute_paths_of_this_machine(tmp_path: Path) -> None:
    fill(tmp_path / "else where#", "1 ü%20.jpg", "2.jpg")
    path = tmp_path / "else where#/1 ü%20.jpg"
    uri = (tmp_path / "else where#/2.jpg").as_uri()
    (tmp_path / "list").mkdir()
    corpus = open_text(tmp_path / "list", f"path,label\n{path},cat\n{uri},dog\n")
    assert images_of(corpus) == {str(path): b"1 \xc3\xbc%20.jpg", str(tmp_path / "else where#/2.jpg"): b"2.jpg"}


REFUSED = [
    "../1.jpg",
    "a/../../1.jpg",
    "pipe:cat /etc/passwd",
    "PIPE:cat /etc/passwd",
    "http://user:secret@host/1.jpg",
    "https://host/1.jpg?token=secret",
    "s3://key:secret@bucket/1.jpg",
    "s3://bucket/../1.jpg",
    "s3://bucket",
    "s3:/bucket/1.jpg",
    "gs://bucket/1.jpg",
    "ftp://secret@host/1.jpg",
    "file://host/1.jpg",
    "file:1.jpg",
    "custom+secret://x/1.jpg",
    "data:image/png;base64,secret",
    "x\0y.jpg",
]


@pytest.mark.parametrize("text", REFUSED)
@pytest.mark.parametrize("is_local", [True, False])
def test_paths_that_are_not_followed(text: str, is_local: bool) -> None:
    with pytest.raises(RefusedPathError) as caught:
        resolve_path(text, is_local=is_local)
    assert "secret" not in str(caught.value)
    assert "passwd" not in str(caught.value)


@pytest.mark.parametrize("text", ["/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd", "//etc/passwd"])
def test_a_manifest_from_a_bucket_names_no_file_of_this_machine(text: str) -> None:
    with pytest.raises(RefusedPathError, match="this machine"):
        resolve_path(text, is_local=False)


def test_a_refused_path_costs_its_row_and_is_not_told(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"path": text}) + "\n" for text in [*REFUSED, "1.jpg"])
    corpus = open_text(tmp_path, rows, "m.jsonl")
    assert list(labels_of(corpus)) == ["1.jpg"]
    assert rejects_of(corpus) == [(f"m.jsonl:{at + 1}", "path-refused") for at in range(len(REFUSED))]
    assert "secret" not in str(corpus.rejects.table().to_pylist())


def test_names_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("{a,b}{c,d}{e,f}.jpg", "*.jpg", "$HOME.jpg", "~x.jpg", "a:b.jpg", "%2e%2e.jpg", " 1.jpg"):
        fill(tmp_path, name)
        assert images_of(open_text(tmp_path, f'path\n"{name}"\n')) == {name: name.encode()}


@pytest.mark.parametrize(
    ("text", "name", "what"),
    [
        ("a.jpg,cat\n", "m.csv", "no column of paths"),
        ("", "m.csv", "no column of paths"),
        ('path,label\n"x.jpg,cat\n', "m.csv", "is not a table: line 2"),
        (b"path\n\xff\xfe\n", "m.csv", "not UTF-8"),
        (b'{"path": "\xff"}\n', "m.jsonl", "not UTF-8"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str | bytes, name: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        open_text(tmp_path, text, name)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_manifest_without_rows_is_an_empty_corpus(tmp_path: Path) -> None:
    assert open_text(tmp_path, "path,label\n").num_input == 0
