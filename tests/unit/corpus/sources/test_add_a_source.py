"""A source is added as the README of the sources says: a class, a SourceKind, a row of KINDS; nothing else changes."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.base.config import build
from pipeline.base.errors import InputError, RecipeError
from pipeline.base.store import open_store
from pipeline.corpus import open_corpus
from pipeline.corpus.recipe import SourceRecipe
from pipeline.corpus.sources import KINDS
from pipeline.corpus.sources.location import SourceLocation
from pipeline.corpus.sources.readers import FileReader
from pipeline.corpus.sources.source import LabelKind, ListingBuilder, ListingChunk, SourceKind
from pipeline.records.corpus import ClassEntry, key_of
from pipeline.shard.plan import plan_shards
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.writer import write_shard
from tests.support.pictures import noise, png
from tests.support.scanning import scanner_in
from tests.support.sources import fill, images_of, labels_of


class AlbumSource:
    """A file ``*.album``: one line of JSON, [name, label, bytes] of each image, then the images one after the other."""

    kind = "album"
    random_access = True
    may_repeat = False
    label_kind: LabelKind = "names"
    declared_classes: Sequence[ClassEntry] = ()

    def __init__(self, location: SourceLocation) -> None:
        self._location = location
        self.reader = FileReader(location.store)

    def chunks(self) -> Iterator[ListingChunk]:
        """See Source."""
        builder = ListingBuilder()
        for info in self._location.objects("album"):
            head = self._location.store.read(info.key).partition(b"\n")[0]
            offset = len(head) + 1
            for name, label, num_bytes in json.loads(head):
                builder.add(f"{info.key}/{name}", info.key, [label], num_bytes, info.etag, offset)
                offset += num_bytes
                if builder.is_full:
                    yield builder.take()
        yield builder.take()


def matches(location: SourceLocation) -> bool:
    return location.count("album") > 0


ALBUM = SourceKind("album", matches, AlbumSource, containers=("album",))
IMAGES = {"one.png": png(noise(24, 16, 1)), "two.png": png(noise(16, 24, 2))}
EXPECTED = {f"x.album/{name}": data for name, data in IMAGES.items()}


@pytest.fixture
def album(tmp_path: Path) -> str:
    """A folder with one album of two images."""
    head = json.dumps([[name, f"class-{name[:3]}", len(data)] for name, data in IMAGES.items()])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/x.album").write_bytes(head.encode() + b"\n" + b"".join(IMAGES.values()))
    return str(tmp_path / "photos")


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, ALBUM.name, ALBUM)


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("kind", ["auto", "album"])
def test_its_images_are_listed_and_read(album: str, kind: str) -> None:
    corpus = open_corpus([build(SourceRecipe, {"source": album, "kind": kind})])
    assert images_of(corpus) == EXPECTED
    assert labels_of(corpus) == {"x.album/one.png": ["class-one"], "x.album/two.png": ["class-two"]}
    assert corpus.made_of["sources"][0]["kind"] == "album"
    reader = pickle.loads(pickle.dumps(corpus.reader))
    assert list(reader.read(corpus.entries.table())) == list(EXPECTED.values())


@pytest.mark.usefixtures("_registered")
def test_its_images_are_scanned_and_sharded(album: str, tmp_path: Path) -> None:
    corpus = open_corpus(album)
    scanned = scanner_in(tmp_path / "work").scan(corpus, "pixels").table()
    assert scanned["reason"].to_pylist() == ["", ""]
    target = open_store(str(tmp_path / "dataset"))
    (shard,) = plan_shards(corpus.entries, ShardRecipe())
    written = write_shard(shard, corpus.reader, target, "plan", ShardRecipe())
    assert (written.entry.num_samples, written.rejects) == (2, ())
    with tarfile.open(tmp_path / "dataset" / written.entry.name) as tar:
        images = {name: tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".png")}  # type: ignore[union-attr]
    assert images == {f"{key_of(origin)}.png": data for origin, data in EXPECTED.items()}


@pytest.mark.usefixtures("_registered")
def test_images_beside_it_are_not_left_out_in_silence(album: str) -> None:
    fill(Path(album), "a.jpg", "b.jpg")
    with pytest.raises(InputError, match="2 images beside 1 files of many images - say which are meant: name the kind"):
        open_corpus(album)
    assert images_of(open_corpus([SourceRecipe(source=album, kind="album")])) == EXPECTED


def test_without_its_row_it_is_unknown(album: str) -> None:
    with pytest.raises(InputError, match=r"no images in .* \(only: album\)"):
        open_corpus(album)
    with pytest.raises(RecipeError, match=r"'kind': Input should be 'auto', .*\(got 'album'\)"):
        build(SourceRecipe, {"source": album, "kind": "album"})
