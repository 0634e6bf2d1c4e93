"""Class tables: the files that hold one, what is refused, and how texts find their class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.corpus import open_corpus
from pipeline.corpus.class_table import load_classes
from pipeline.records.corpus import ClassEntry
from tests.support.sources import fill, labels_of, rejects_of

NAMES = ["tench", "tabby cat", "猫"]
FULL = [ClassEntry(name="tench", synset="n01440764", parent="fish"), ClassEntry(name="tabby", synset="n02123045")]


def write(folder: Path, name: str, text: str) -> str:
    """The path of a file with *text*."""
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "tench\ntabby cat\n猫\n\n"),
        ("c.txt", "\ufefftench\r\ntabby cat\r\n猫"),
        ("c.csv", "name\ntench\ntabby cat\n猫\n"),
        ("c.json", json.dumps(NAMES)),
        ("c.json", json.dumps({"classes": [{"name": name} for name in NAMES]})),
        ("c.yaml", "- tench\n- tabby cat\n- 猫\n"),
        ("c.yml", "---\n[tench, tabby cat,\n猫]\n"),
        ("c.yaml", "names:\n  - tench\n  - {name: tabby cat}\n  - name: 猫\n"),
    ],
)
def test_lists_of_names(tmp_path: Path, name: str, text: str) -> None:
    assert [entry.name for entry in load_classes(write(tmp_path, name, text))] == NAMES


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "synset,name,parent\nn01440764,tench,fish\nn02123045,tabby\n"),
        ("c.tsv", "Name\tSynset\tParent\tnote\ntench\tn01440764\tfish\tx\ntabby\tn02123045\t\ty\n"),
        ("c.json", json.dumps([entry.model_dump() for entry in FULL])),
        ("c.yaml", "- {name: tench, synset: n01440764, parent: fish}\n- name: tabby\n  synset: n02123045\n"),
    ],
)
def test_tables_with_synsets_and_parents(tmp_path: Path, name: str, text: str) -> None:
    assert list(load_classes(write(tmp_path, name, text))) == FULL


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("c.txt", "", "no classes"),
        ("c.txt", "a\n\nb\n", "line 2 is empty"),
        ("c.txt", "a\nb\na\n", "'a' stands for class 0 and for class 2"),
        ("c.csv", "name,synset\na,x\nb,a\n", "'a' stands for class 0 and for class 1"),
        ("c.csv", "name,synset\na,x\nb,x\n", "'x' stands for"),
        ("c.csv", "label,synset\na,x\n", "no column 'name'"),
        ("c.csv", 'name\n"a\n', "not a table"),
        ("c.csv", "name,parent\na,b\nb,c\nc,a\n", "above itself"),
        ("c.csv", "name,synset\n,x\n", "has no name"),
        ("c.json", "[", "not JSON"),
        ("c.json", "3", "not a list"),
        ("c.json", '["a", null]', "class 1 is neither"),
        ("c.json", '[{"name": "a", "synonym": "b"}]', "class 0 is neither"),
        ("c.yaml", "- yes\n- no\n", "class 0 is neither"),
        ("c.yaml", "- &a x\n- *a\n", "aliases"),
        ("c.yaml", "- !!python/object:os.system x\n", "YAML"),
        ("c.pkl", "x", "class tables are"),
    ],
)
def test_what_is_no_class_table_is_refused(tmp_path: Path, name: str, text: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        load_classes(write(tmp_path, name, text))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no class table"):
        load_classes(str(tmp_path / "c.txt"))


def test_folders_find_their_class_by_name_or_synset(tmp_path: Path) -> None:
    fill(tmp_path / "images", "n01440764/1.jpg", "tench/2.jpg", "tabby/3.jpg", "cow/4.jpg")
    table = write(tmp_path, "c.json", json.dumps([entry.model_dump() for entry in FULL]))
    corpus = open_corpus(str(tmp_path / "images"), classes=table)
    assert labels_of(corpus) == {"n01440764/1.jpg": ["tench"], "tench/2.jpg": ["tench"], "tabby/3.jpg": ["tabby"]}
    assert rejects_of(corpus) == [("cow/4.jpg", "label-unknown")]
    assert corpus.classes == tuple(FULL)


def test_numbers_are_those_of_the_table(tmp_path: Path) -> None:
    manifest = write(tmp_path, "m.csv", "path,label\n1.jpg,1\n2.jpg,0\n3.jpg,2\n4.jpg,-1\n")
    corpus = open_corpus(manifest, classes=write(tmp_path, "c.txt", "cat\ndog\n"))
    assert labels_of(corpus) == {"1.jpg": ["dog"], "2.jpg": ["cat"]}
    assert sorted(rejects_of(corpus)) == [("3.jpg", "label-out-of-range"), ("4.jpg", "label-out-of-range")]


def test_names_that_are_numbers(tmp_path: Path) -> None:
    manifest = write(tmp_path, "m.csv", "path,label\n1.jpg,7\n2.jpg,5\n")
    corpus = open_corpus(manifest, classes=write(tmp_path, "c.txt", "5\n7\n"))
    assert labels_of(corpus) == {"1.jpg": ["7"], "2.jpg": ["5"]}


def test_a_table_for_images_without_labels_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "images", "1.jpg")
    with pytest.raises(InputError, match="no image has a label"):
        open_corpus(str(tmp_path / "images"), classes=write(tmp_path, "c.txt", "cat\n"))
