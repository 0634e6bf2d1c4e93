"""Every kind of source in a bucket of the real server: found, read ahead, pinned to what was listed."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.local.s3_server import LocalS3
from pipeline.base.errors import InputError, StoreAccessError
from pipeline.base.store import BucketSettings, ObjectChangedError, open_store
from pipeline.corpus import open_corpus
from pipeline.corpus.recipe import SourceRecipe
from tests.support.sources import images_of, labels_of, origins_of, rejects_of


def parquet_bytes(images: list[bytes], labels: list[int]) -> bytes:
    """A table in the layout of dataset hubs."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [{"bytes": image, "path": ""} for image in images], "label": labels}), sink)
    return sink.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    """An archive of *files*."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def test_a_folder(s3_workspace: str) -> None:
    store = open_store(f"{s3_workspace}/pictures")
    for name in ("cat/1 é.jpg", "dog/2.png", "3.jpg", "dog/.hidden.jpg", "readme.txt", "a.b/c//4.jpg"):
        store.put(name, name.encode())
    open_store(f"{s3_workspace}/pictures-of-others").put("owl/1.jpg", b"x")
    corpus = open_corpus(f"{s3_workspace}/pictures")
    found = labels_of(corpus)
    assert {origin: found[origin] for origin in ("cat/1 é.jpg", "dog/2.png")} == {
        "cat/1 é.jpg": ["cat"],
        "dog/2.png": ["dog"],
    }
    assert len(found) == 3  # the server makes one slash of two
    assert rejects_of(corpus) == [("3.jpg", "label-missing")]
    assert images_of(corpus)["cat/1 é.jpg"] == "cat/1 é.jpg".encode()


def test_many_objects_are_read_ahead_in_their_order_and_the_threads_end(s3_workspace: str) -> None:
    store = open_store(f"{s3_workspace}/many")
    for number in range(100):
        store.put(f"x/{number:03d}.jpg", f"image {number}".encode())
    corpus = open_corpus(f"{s3_workspace}/many")
    entries = corpus.entries.table()
    store.delete("x/041.jpg")
    store.put("x/057.jpg", b"another")
    images = pickle.loads(pickle.dumps(corpus.reader)).read(entries)
    for number in range(100):
        if number in (41, 57):
            with pytest.raises(FileNotFoundError if number == 41 else ObjectChangedError):
                next(images)
        else:
            assert next(images) == f"image {number}".encode()
    assert any(thread.name.startswith("vitpipe-read") for thread in threading.enumerate())
    assert next(images, "end") == "end"
    for thread in threading.enumerate():
        if thread.name.startswith("vitpipe-read"):
            thread.join(10)
            assert not thread.is_alive()


def test_credentials_that_stop_working_are_no_rejects(s3_workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(f"{s3_workspace}/x").put("a/1.jpg", b"x")
    corpus = open_corpus(f"{s3_workspace}/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreAccessError):
        next(pickle.loads(pickle.dumps(corpus.reader)).read(corpus.entries.table()))


def test_an_empty_prefix_is_refused(s3_workspace: str) -> None:
    with pytest.raises(InputError, match="it is empty"):
        open_corpus(f"{s3_workspace}/nothing")


def test_a_bucket_that_is_not_there_is_refused(s3_workspace: str) -> None:
    with pytest.raises(StoreAccessError, match="no bucket"):
        open_corpus("s3://nobody-made-this/x")


def test_parquet_files(s3_workspace: str) -> None:
    store = open_store(f"{s3_workspace}/hub")
    for number in range(2):
        images = [f"{number}/{at}".encode() for at in range(4)]
        store.put(f"data/train-{number}.parquet", parquet_bytes(images, [1, 0, 1, 0]))
    corpus = open_corpus(f"{s3_workspace}/hub")
    assert corpus.class_names == ("0", "1")
    entries = corpus.entries.table().take([5, 2, 0])
    assert list(corpus.reader.read(entries)) == [b"1/1", b"0/2", b"0/0"]
    single = open_corpus(f"{s3_workspace}/hub/data/train-1.parquet")
    assert list(images_of(single).values()) == [b"1/0", b"1/1", b"1/2", b"1/3"]
    store.put("data/train-0.parquet", parquet_bytes([b"other"] * 4, [1, 0, 1, 0]))
    images_read = corpus.reader.read(entries)
    assert next(images_read) == b"1/1"
    with pytest.raises(ObjectChangedError):
        next(images_read)


def test_what_is_no_parquet_file_is_refused(s3_workspace: str) -> None:
    open_store(s3_workspace).put("x/broken.parquet", b"PAR1 nothing of the kind PAR1")
    with pytest.raises(InputError, match="not a parquet file"):
        open_corpus(f"{s3_workspace}/x")


def test_tars_plain_gzipped_and_of_tars(s3_workspace: str) -> None:
    files = {name: data for at in range(50) for name, data in ((f"{at}.cls", b"1"), (f"{at}.jpg", b"%d" % at * 9_000))}
    big = tar_of({"big.jpg": b"x" * 9_000_000, "big.cls": b"0", **files})
    store = open_store(f"{s3_workspace}/tars")
    store.put("0.tar", big)
    store.put("1.tgz", gzip.compress(tar_of(files), 1))
    corpus = open_corpus(f"{s3_workspace}/tars")
    assert rejects_of(corpus) == []
    images = images_of(corpus)
    assert images["0.tar/big.jpg"] == b"x" * 9_000_000
    assert {name for name in images if name.startswith("0")} >= {f"0.tar/{at}.jpg" for at in range(50)}
    assert all(images[f"{tar}/{at}.jpg"] == b"%d" % at * 9_000 for at in range(50) for tar in ("0.tar", "1.tgz"))
    store.put("train.tar", tar_of({"n01440764.tar": tar_of({"1.JPEG": b"one", "2.JPEG": b"two"})}))
    nested = open_corpus(f"{s3_workspace}/tars/train.tar")
    assert nested.made_of["sources"][0]["kind"] == "imagenet"
    assert list(images_of(nested).values()) == [b"one", b"two"]


def test_a_manifest_and_objects_in_other_buckets_by_their_own_settings(
    s3_workspace: str, s3_server: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_workspace.split("/")[2]
    open_store(s3_workspace).put("images/1.jpg", b"one")
    settings = {bucket: BucketSettings(endpoint=s3_server.environment()["AWS_ENDPOINT_URL"])}
    uri = f"{s3_workspace}/images/1.jpg"
    rows = [
        "path,label",
        "1.jpg,cat",
        f"{uri},dog",
        "/etc/passwd,cat",
        "file:///etc/passwd,cat",
        "../1.jpg,cat",
        "no.jpg,cat",
    ]
    open_store(s3_workspace).put("images/list.csv", "\n".join(rows).encode())
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    corpus = open_corpus([SourceRecipe(source=f"{s3_workspace}/images/list.csv")], settings)
    assert labels_of(corpus) == {"1.jpg": ["cat"], uri: ["dog"], "no.jpg": ["cat"]}
    assert rejects_of(corpus) == [(f"list.csv:{row}", "path-refused") for row in (3, 4, 5)]
    images = pickle.loads(pickle.dumps(corpus.reader)).read(corpus.entries.table())
    assert [next(images), next(images)] == [b"one", b"one"]
    with pytest.raises(FileNotFoundError):
        next(images)


def test_a_local_manifest_of_objects(s3_workspace: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    open_store(s3_workspace).put("1.jpg", b"one")
    manifest = tmp_path_factory.mktemp("list") / "m.jsonl"
    manifest.write_text(f'{{"uri": "{s3_workspace}/1.jpg", "label": "cat"}}\n')
    corpus = open_corpus(str(manifest))
    assert images_of(corpus) == {f"{s3_workspace}/1.jpg": b"one"}
    assert origins_of(corpus) == [f"{s3_workspace}/1.jpg"]
