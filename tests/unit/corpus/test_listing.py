"""Several sources as one corpus: names, class tables, weights; and what is looked for where nothing is said."""

from __future__ import annotations

import io
import pickle
import tarfile
import tracemalloc
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.config import build
from pipeline.base.errors import InputError, RecipeError, RefusedError
from pipeline.base.store import open_store
from pipeline.corpus import open_corpus
from pipeline.corpus.listing import NamedSource, concat
from pipeline.corpus.recipe import SourceRecipe
from pipeline.corpus.sources import KINDS
from pipeline.corpus.sources.readers import FileReader
from pipeline.corpus.sources.source import LabelKind, ListingChunk
from pipeline.records.corpus import LISTING_SCHEMA, SOURCE_SCHEMA, ClassEntry, Corpus, Reject, key_of
from tests.support.sources import fill, images_of, labels_of, origins_of, rejects_of


def folder_of(folder: Path, *names: str) -> str:
    """The path of a folder with these files."""
    return str(fill(folder, *names))


def joined(*recipes: SourceRecipe, classes: str | None = None) -> Corpus:
    """The corpus of several sources."""
    return open_corpus(recipes, classes=classes)


def table_file(path: Path, labels: list[object], names: list[str] | None = None) -> str:
    """A parquet file with these labels."""
    table = pa.table({"image": [f"{path.stem}{at}".encode() for at in range(len(labels))], "label": labels})
    if names is not None:
        features = f'{{"info": {{"features": {{"label": {{"names": {names}}}}}}}}}'.replace("'", '"')
        table = table.replace_schema_metadata({"huggingface": features})
    pq.write_table(table, path)
    return str(path)


def test_origins_are_led_by_the_name_or_number_of_their_source(tmp_path: Path) -> None:
    one = folder_of(tmp_path / "x", "cat/1.jpg", "dog/2.jpg")
    two = folder_of(tmp_path / "y", "owl/1.jpg", "cat/1.jpg")
    corpus = joined(SourceRecipe(source=one), SourceRecipe(source=two, name="birds"))
    expected = {"0/cat/1.jpg": ["cat"], "0/dog/2.jpg": ["dog"], "birds/cat/1.jpg": ["cat"], "birds/owl/1.jpg": ["owl"]}
    assert labels_of(corpus) == expected
    assert corpus.class_names == ("cat", "dog", "owl")
    assert images_of(corpus) == {origin: origin.partition("/")[2].encode() for origin in expected}
    assert corpus.entries.table()["source"].to_pylist() == [0, 0, 1, 1]
    assert [source["name"] for source in corpus.made_of["sources"]] == ["0", "birds"]


def test_one_source_with_a_name(tmp_path: Path) -> None:
    corpus = joined(SourceRecipe(source=folder_of(tmp_path / "x", "cat/1.jpg"), name="mine"))
    assert labels_of(corpus) == {"mine/cat/1.jpg": ["cat"]}
    assert images_of(corpus) == {"mine/cat/1.jpg": b"cat/1.jpg"}


def test_sources_of_different_kinds_are_read_through_one_reader(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", "cat/1.jpg", "dog/2.jpg")
    table = table_file(tmp_path / "t.parquet", ["dog", "owl"])
    corpus = joined(SourceRecipe(source=folder), SourceRecipe(source=table))
    assert corpus.class_names == ("cat", "dog", "owl")
    assert not corpus.random_access
    assert images_of(corpus) == {
        "0/cat/1.jpg": b"cat/1.jpg",
        "0/dog/2.jpg": b"dog/2.jpg",
        "1/t.parquet#0": b"t0",
        "1/t.parquet#1": b"t1",
    }
    (tmp_path / "x/cat/1.jpg").unlink()
    reader = pickle.loads(pickle.dumps(corpus.reader))
    images = reader.read(corpus.entries.table().take([3, 0, 1, 2]))
    assert next(images) == b"t1"
    with pytest.raises(FileNotFoundError):
        next(images)
    assert list(images) == [b"dog/2.jpg", b"t0"]


def test_declared_numbers_are_united_by_name(tmp_path: Path) -> None:
    one = table_file(tmp_path / "a.parquet", [0, 1, 2], ["cat", "dog"])
    two = table_file(tmp_path / "b.parquet", [0, 1], ["owl", "cat"])
    corpus = joined(SourceRecipe(source=one), SourceRecipe(source=two))
    assert corpus.class_names == ("cat", "dog", "owl")
    assert labels_of(corpus)["1/b.parquet#0"] == ["owl"]
    assert labels_of(corpus)["1/b.parquet#1"] == ["cat"]
    assert rejects_of(corpus) == [("0/a.parquet#2", "label-out-of-range")]


def test_a_table_takes_declared_numbers_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("name,synset\ndog,n2\nfeline,cat\n")
    source = table_file(tmp_path / "a.parquet", [0, 1, 2], ["cat", "dog", "owl"])
    corpus = open_corpus(source, classes=str(tmp_path / "c.csv"))
    assert labels_of(corpus) == {"a.parquet#0": ["feline"], "a.parquet#1": ["dog"]}
    assert rejects_of(corpus) == [("a.parquet#2", "label-unknown")]


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    named = SourceRecipe(source=folder_of(tmp_path / "named", "cat/1.jpg"))
    bare = SourceRecipe(source=folder_of(tmp_path / "bare", "1.jpg"), name="bare")
    numbered = SourceRecipe(source=table_file(tmp_path / "a.parquet", [0, 1]))
    twice = SourceRecipe(source=table_file(tmp_path / "b.parquet", [0, 1], ["cat", "cat"]))
    weighted = SourceRecipe(source=named.source, weight=1)
    for recipes, what in [
        ((named, bare), "source bare has no labels, source 0 has"),
        ((named, numbered), "are numbers, those of source 0 names"),
        ((twice,), "'cat' stands for"),
        ((named, weighted), "some sources have a weight"),
        ((bare, bare), "same name"),
        ((), "no source"),
    ]:
        with pytest.raises(InputError, match=what) as caught:
            joined(*recipes)
        assert "\n" not in str(caught.value)


def test_more_labels_than_a_class_table_may_have() -> None:
    count = 1_000_001
    texts = pa.array(np.arange(count)).cast(pa.string())
    labels = pa.ListArray.from_arrays(pa.array(np.arange(count + 1), pa.int32()), texts)
    numbers = [pa.array(np.full(count, -1)) for _ in range(3)]
    table = pa.table([texts, texts, *numbers, texts, labels], schema=SOURCE_SCHEMA)
    with pytest.raises(InputError, match="more than 1000000 different labels"):
        concat([NamedSource(MadeUp(iter([table])))])


class MadeUp:
    """A source of tables that come as they are asked for."""

    kind = "folder"
    random_access = True
    may_repeat = False
    declared_classes: tuple[ClassEntry, ...] = ()

    def __init__(self, tables: Iterator[pa.Table], label_kind: LabelKind = "names", rejects: int = 0) -> None:
        self.reader = FileReader(open_store("/"))
        self.label_kind: LabelKind = label_kind
        self._tables, self._rejects = tables, rejects

    def chunks(self) -> Iterator[ListingChunk]:
        """See Source."""
        for table in self._tables:
            yield ListingChunk(table, [Reject(f"bad{at}", "unreadable") for at in range(self._rejects)])


def found(origins: list[str], labels: list[list[str] | None] | pa.Array) -> pa.Table:
    """Rows of whole files."""
    size = len(origins)
    columns = [origins, origins, [-1] * size, [-1] * size, [100_000] * size, ["etag"] * size]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SOURCE_SCHEMA, strict=False)]
    return pa.table([*arrays, pa.array(labels, SOURCE_SCHEMA.field("labels").type)], schema=SOURCE_SCHEMA)


def numbered(count: int, name: str = "") -> MadeUp:
    """*count* images of one class."""
    return MadeUp(iter([found([f"{name}{at}.jpg" for at in range(count)], [["cat"]] * count)]))


def test_weights_take_shares_by_the_hash_of_the_key() -> None:
    corpus = concat([NamedSource(numbered(4_000), "a", 1.0), NamedSource(numbered(1_000), "b", 1.0)])
    taken = [source["num_taken"] for source in corpus.made_of["sources"]]
    assert taken[1] == 1_000
    assert 850 < taken[0] < 1_150
    assert sum(taken) == corpus.num_input == corpus.entries.num_rows
    assert [source["num_listed"] for source in corpus.made_of["sources"]] == [4_000, 1_000]
    more = concat([NamedSource(numbered(4_400), "a", 1.1), NamedSource(numbered(1_000), "b", 1.0)])
    assert set(origins_of(corpus)) <= set(origins_of(more))  # the same share: what was taken stays


def test_a_weight_thins_rejects_as_well() -> None:
    bad = MadeUp(iter([found(["x.jpg"], [["cat"]])]), rejects=3_999)
    corpus = concat([NamedSource(bad, "a", 1.0), NamedSource(numbered(1_000), "b", 1.0)])
    assert 850 < corpus.rejects.num_rows < 1_150
    assert corpus.num_input == sum(source["num_taken"] for source in corpus.made_of["sources"])


def test_thinning_is_independent_of_the_key_itself() -> None:
    """Splits go by the key: of what is taken, each of them must get its share."""
    corpus = concat([NamedSource(numbered(20_000), "a", 1.0), NamedSource(numbered(2_000), "b", 1.0)])
    low = [origin for origin in origins_of(corpus) if origin.startswith("a/") and key_is_low(origin)]
    assert 800 < len(low) < 1_200


def key_is_low(origin: str) -> bool:
    """Whether the key is in the lower half of all."""
    return int(key_of(origin), 16) < 2**79


def test_labels_of_200_000_entries_are_resolved_in_bounded_memory() -> None:
    """Some of each thing that can be wrong; what Python and arrow hold at most does not grow with the entries."""
    peaks = {}
    for num_chunks in (4, 20):
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        corpus = concat(
            [NamedSource(MadeUp(many(num_chunks, before), "either"), "big"), NamedSource(numbered(10, "x"), "small")],
            TABLE,
        )
        peaks[num_chunks] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert corpus.num_input == 200_010
    reasons = [row["reason"] for row in corpus.rejects.table().to_pylist()]
    counts = {reason: reasons.count(reason) for reason in set(reasons)}
    assert counts == {"label-missing": 400, "label-unknown": 200, "label-out-of-range": 200}
    labels = corpus.entries.table()["labels"]
    assert corpus.entries.table().schema == LISTING_SCHEMA
    assert labels.slice(0, 4).to_pylist() == [[0], [1], [2], [3]]
    assert labels.slice(990, 3).to_pylist() == [[3, 1], [], [994]]
    assert corpus.made_of["labels"] == "multi"
    assert peaks[20] < peaks[4] + 8_000_000  # as Python objects the rows that are more would be 50 MB


TABLE = [ClassEntry(name=f"c{at}") for at in range(999)] + [ClassEntry(name="cat")]


def many(num_chunks: int, before: int) -> Iterator[pa.Table]:
    """Chunks of 10,000 rows; arrow must not hold more than a few of them."""
    labels: list[list[str] | None] = [[f"c{at}"] for at in range(1_000)]
    labels[990:994] = [["c3", "c1", "c3"], [], None, ["c1", "nobody"]]
    labels[995:997] = [["-1"], ["c5", None]]  # type: ignore[list-item]
    labels[999] = ["cat"]
    for number in range(num_chunks):
        assert pa.total_allocated_bytes() - before < 100_000_000
        yield found([f"{number}/{at}.jpg" for at in range(10_000)], labels * 10)


def test_a_look_tells_the_kind(tmp_path: Path) -> None:
    def kind(folder: str) -> str:
        return open_corpus(str(tmp_path / folder)).made_of["sources"][0]["kind"]

    archive = io.BytesIO()
    tarfile.open(fileobj=archive, mode="w").close()
    fill(tmp_path / "images", "a/1.jpg", "a/readme.txt", "labels.csv", "x/Makefile")
    fill(tmp_path / "hub", "readme.md", "data/notes.txt")
    table_file(tmp_path / "hub/data/train.parquet", [0, 1])
    fill(tmp_path / "hub", "preview.png")
    fill(tmp_path / "tars", "notes.txt")
    (tmp_path / "tars/x.tar").write_bytes(archive.getvalue())
    assert [kind(name) for name in ("images", "hub", "tars")] == ["folder", "parquet", "webdataset"]
    fill(tmp_path / "hub", "more/1.jpg", "more/2.jpg")
    with pytest.raises(InputError, match=r"3 images beside 1 tars or parquet files.*kind folder"):
        kind("hub")
    parquet = open_corpus([SourceRecipe(source=str(tmp_path / "hub"), kind="parquet")])
    assert parquet.entries.num_rows == 2
    table_file(tmp_path / "tars/t.parquet", [0])
    with pytest.raises(InputError, match="tars beside parquet files"):
        kind("tars")


def test_a_kind_that_is_not_there_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg")
    for kind in ("folder", "parquet", "webdataset", "imagenet", "manifest"):
        with nullcontext() if kind == "folder" else pytest.raises(InputError, match="nothing of the kind"):
            open_corpus([SourceRecipe(source=str(tmp_path), kind=kind)])
    assert set(KINDS) == {kind.name for kind in KINDS.values()}
    known = "'auto', 'folder', 'parquet', 'webdataset', 'imagenet' or 'manifest'"
    for kind, shown in (("tar", "'tar'"), ("", "''"), (5, "5"), (None, "None")):
        with pytest.raises(RecipeError) as caught:
            build(SourceRecipe, {"source": str(tmp_path), "kind": kind})
        assert caught.value.problems == [f"'kind': Input should be {known} (got {shown})"]


@pytest.mark.parametrize(
    "uri", ["pipe:cat x", "gs://b/x", "s3://k:secret@b/x", "s3://b-b/../x", "file://host/x", "", "x\0y"]
)
def test_uris_that_are_refused(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        open_corpus(uri)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_brace_bomb_is_a_name(tmp_path: Path) -> None:
    bomb = "{a,b}" * 40
    with pytest.raises(InputError, match="does not exist"):
        open_corpus(str(tmp_path / f"{bomb}.tar"))
    fill(tmp_path, f"{bomb}/1.jpg")
    assert origins_of(open_corpus(str(tmp_path / bomb))) == ["1.jpg"]


def test_a_name_longer_than_a_file_system_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="File name too long"):
        open_corpus(str(tmp_path / ("x" * 5_000)))
