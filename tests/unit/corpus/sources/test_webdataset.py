"""WebDataset tars to shard again: how members become samples, and what cut, damaged or hostile ones cost."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset

from pipeline.base.errors import InputError
from pipeline.corpus import open_corpus
from pipeline.records.corpus import Corpus
from tests.support.sources import images_of, labels_of, origins_of, rejects_of

Files = list[tuple[str, bytes]]


def tar_of(files: Files, format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of *files*, in their order."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def samples(first: int, last: int) -> Files:
    """Samples of a label and an image each, of sizes that fill blocks in different ways."""
    files: Files = []
    for number in range(first, last):
        files += [(f"{number:04d}.cls", str(number % 3).encode()), (f"{number:04d}.jpg", image_of(number))]
    return files


def image_of(number: int) -> bytes:
    """What stands for the image of sample *number*."""
    return f"image {number} ".encode() * (number * 37 % 200 + 1)


def open_tar(folder: Path, data: bytes, name: str = "a.tar") -> Corpus:
    """The corpus of one archive."""
    (folder / name).write_bytes(data)
    return open_corpus(str(folder / name))


def test_members_that_share_a_key_are_a_sample(tmp_path: Path) -> None:
    corpus = open_tar(tmp_path, tar_of(samples(0, 9)))
    assert corpus.class_names == ("0", "1", "2")
    assert labels_of(corpus) == {f"a.tar/{number:04d}.jpg": [str(number % 3)] for number in range(9)}
    assert images_of(corpus) == {f"a.tar/{number:04d}.jpg": image_of(number) for number in range(9)}
    assert corpus.random_access
    assert corpus.made_of["sources"][0]["kind"] == "webdataset"


def test_keys_and_fields_are_those_of_webdataset(tmp_path: Path) -> None:
    files = [("a/1.v2.jpg", b"x"), ("a/1.cls", b"0"), ("a.b/2.jpg", b"y"), ("a.b/2.JSON", b"{}"), ("./c/3.jpg", b"z")]
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    with tarfile.open(tmp_path / "a.tar") as archive:
        members = [{"fname": member.name, "data": b"", "__url__": ""} for member in archive]
    theirs = [sample["__key__"] for sample in webdataset.tariterators.group_by_keys(iter(members))]
    origins = origins_of(open_corpus(str(tmp_path), classes=None))
    assert theirs == ["a/1", "a.b/2", "./c/3"]
    assert origins == ["a.tar/a/1.v2.jpg"]  # the others lack a label
    assert [origin for origin, _ in rejects_of(open_corpus(str(tmp_path)))] == ["a.tar/a.b/2.jpg", "a.tar/c/3.jpg"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, format: int) -> None:
    long = "/".join(["folder with spaces"] * (5 if format == tarfile.USTAR_FORMAT else 60)) + "/ü\nmlaut.png"
    corpus = open_tar(tmp_path, tar_of([("x/", b""), (long, b"an image"), ("y/2.png", b"other")], format))
    assert images_of(corpus) == {f"a.tar/{long}": b"an image", "a.tar/y/2.png": b"other"}


def test_a_pax_size_counts_and_global_headers_are_passed_by(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", pax_headers={"comment": "x" * 3000}) as archive:
        member = tarfile.TarInfo("1.jpg")
        member.size, member.pax_headers = 700, {"mtime": "1.5", "note": "é" * 500}
        archive.addfile(member, io.BytesIO(b"i" * 700))
    assert images_of(open_tar(tmp_path, sink.getvalue())) == {"a.tar/1.jpg": b"i" * 700}


@pytest.mark.parametrize(
    ("name", "data", "labels"),
    [
        ("cls", b"1\n", ["1"]),
        ("cls", b"\xef\xbb\xbfcat\r\n", ["cat"]),
        ("json", b'{"label": 1}', ["1"]),
        ("json", b'{"labels": [0, 1, 1]}', ["0", "1"]),
        ("json", b'{"labels": []}', []),
        ("json", b'{"class": "cat", "width": 3}', ["cat"]),
        ("json", b'["cat", "dog"]', ["cat", "dog"]),
        ("json", b'{"label": 1.0}', ["1"]),
        ("JSON", b'{"label": true}', ["1"]),
    ],
)
def test_labels_in_fields(tmp_path: Path, name: str, data: bytes, labels: list[str]) -> None:
    other = b"0" if labels and labels[0].isdigit() else b"dog"
    corpus = open_tar(tmp_path, tar_of([("1.jpg", b"x"), (f"1.{name}", data), ("2.jpg", b"y"), ("2.cls", other)]))
    assert labels_of(corpus)["a.tar/1.jpg"] == labels


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("cls", b"", "label-missing"),
        ("cls", b" \n", "label-missing"),
        ("cls", b"nan", "label-out-of-range"),
        ("cls", b"-1", "label-out-of-range"),
        ("cls", b"1" + b"0" * 100, "label-out-of-range"),
        ("cls", b"\xff\xfe", "label-damaged"),
        ("cls", b"0" * 5_000_000, "label-damaged"),
        ("txt", b"a caption", "label-missing"),
        ("json", b"{}", "label-missing"),
        ("json", b'{"label": null}', "label-missing"),
        ("json", b'{"labels": [0, null]}', "label-missing"),
        ("json", b'{"label": NaN}', "label-out-of-range"),
        ("json", b'{"label": -3}', "label-out-of-range"),
        ("json", b'{"label": 1' + b"0" * 100 + b"}", "label-out-of-range"),
        ("json", b'{"label": 0.5}', "label-out-of-range"),
        ("json", b'{"label": {}}', "label-damaged"),
        ("json", b'{"label": 1', "label-damaged"),
        ("json", b"[" * 100_000, "label-damaged"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    corpus = open_tar(tmp_path, tar_of([("1.jpg", b"x"), (f"1.{name}", data), *samples(5, 8)]))
    assert [found for _, found in rejects_of(corpus)] == [reason]
    assert rejects_of(corpus)[0][0].startswith("a.tar/1")
    assert corpus.entries.num_rows == 3


def test_without_labels_nothing_is_labelled(tmp_path: Path) -> None:
    corpus = open_tar(tmp_path, tar_of([("1.jpg", b"x"), ("2.jpg", b"y"), ("2.json", b'{"labels": []}')]))
    assert (corpus.class_names, corpus.made_of["labels"]) == ((), "none")
    assert labels_of(corpus) == {"a.tar/1.jpg": [], "a.tar/2.jpg": []}


def test_other_fields_are_not_read_and_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    bomb = pickle.dumps(Bomb())
    fields = [("1.pyd", bomb), ("1.pkl", bomb), ("1.pth", bomb), ("1.txt", b"a cat"), ("1.seg.png", b"mask")]
    alone = [("2.pyd", bomb), ("2.cls", b"0")]
    corpus = open_tar(tmp_path, tar_of([("1.jpg", b"x"), ("1.cls", b"0"), *fields, *alone]))
    assert images_of(corpus) == {"a.tar/1.jpg": b"x"}
    assert rejects_of(corpus) == [("a.tar/2", "image-missing")]
    assert not (tmp_path / "exploded").exists()


def test_jpg_stands_before_png_and_what_is_left_open_is_rejected(tmp_path: Path) -> None:
    files = [("1.png", b"mask"), ("1.jpg", b"image"), ("2.left.png", b"l"), ("2.right.png", b"r"), ("3.x.webp", b"w")]
    corpus = open_tar(tmp_path, tar_of(files))
    assert images_of(corpus) == {"a.tar/1.jpg": b"image", "a.tar/3.x.webp": b"w"}
    assert rejects_of(corpus) == [("a.tar/2", "image-ambiguous")]


@pytest.mark.parametrize("name", ["../1.jpg", "x/../../1.jpg", "/etc/1.jpg"])
def test_names_that_lead_out_of_the_archive(tmp_path: Path, name: str) -> None:
    corpus = open_tar(tmp_path, tar_of([("0.jpg", b"x"), (name, b"y"), ("2.jpg", b"z")]))
    assert sorted(images_of(corpus)) == ["a.tar/0.jpg", "a.tar/2.jpg"]
    assert [reason for _, reason in rejects_of(corpus)] == ["member-refused"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_members_that_are_no_files(tmp_path: Path, kind: bytes) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number, name in enumerate(["folder", "1.jpg", "1.cls", "2.jpg", "2.txt", "3.jpg"]):
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if not number else kind if name in ("1.jpg", "2.txt") else tarfile.REGTYPE
            member.linkname = "/etc/passwd"
            archive.addfile(member)
    corpus = open_tar(tmp_path, sink.getvalue())
    assert origins_of(corpus) == ["a.tar/2.jpg", "a.tar/3.jpg"]  # another field of 2 is refused, not its image
    assert rejects_of(corpus) == [("a.tar/1", "member-refused")]


def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    data = tar_of([("0.jpg", b"x"), ("Q.jpg", b"y")], tarfile.USTAR_FORMAT).replace(b"Q.jpg", b"\xff.jpg")
    header = bytearray(data[1024:1536])
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    corpus = open_tar(tmp_path, data[:1024] + bytes(header) + data[1536:])
    assert rejects_of(corpus) == [("a.tar/\\udcff", "name-not-unicode")]
    assert origins_of(corpus) == ["a.tar/0.jpg"]


def test_hidden_members_are_passed_by(tmp_path: Path) -> None:
    names = ["./._1.jpg", "./1.jpg", "__MACOSX/._1.jpg", "x/.thumbs/2.jpg", "x/._2.jpg", "x/2.jpg"]
    corpus = open_tar(tmp_path, tar_of([(name, name.encode()) for name in names]))
    assert images_of(corpus) == {"a.tar/1.jpg": b"./1.jpg", "a.tar/x/2.jpg": b"x/2.jpg"}
    assert rejects_of(corpus) == []


def test_an_archive_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(samples(0, 3)))
    (tmp_path / "b.tar.gz").symlink_to("/proc/self/mem")  # can be opened, and gives an input/output error
    with pytest.raises(InputError, match=r"b\.tar\.gz cannot be read: Input/output error"):
        open_corpus(str(tmp_path))


def test_repeated_keys(tmp_path: Path) -> None:
    files = [*samples(0, 3), *samples(1, 2), ("7.jpg", b"x"), ("7.cls", b"0"), ("7.jpg", b"y"), ("7.cls", b"0")]
    corpus = open_tar(tmp_path, tar_of(files))
    assert [reason for _, reason in rejects_of(corpus)] == ["key-repeated"] * 2
    assert images_of(corpus)["a.tar/7.jpg"] == b"x"
    assert corpus.entries.num_rows == 4


def test_a_sample_that_is_split_over_two_archives(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of([*samples(0, 3), ("0003.cls", b"0")]))
    (tmp_path / "1.tar").write_bytes(tar_of([("0003.jpg", b"x"), *samples(4, 6)]))
    corpus = open_corpus(str(tmp_path))
    assert rejects_of(corpus) == [("0.tar/0003", "sample-split")]
    assert corpus.entries.num_rows == 5
    assert corpus.num_input == 6


def test_equal_keys_in_two_archives_are_two_samples(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(tar_of(samples(3, 4)))
    assert origins_of(open_corpus(str(tmp_path))) == ["0.tar/0003.jpg", "1.tar/0003.jpg"]


def ends_of(data: bytes) -> list[int]:
    """Where each sample of ``tar_of(samples(...))`` ends."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [member.offset_data + -(-member.size // 512) * 512 for member in archive][1::2]


def test_an_archive_that_is_cut_anywhere_gives_what_is_whole(tmp_path: Path) -> None:
    data = tar_of(samples(0, 8), tarfile.USTAR_FORMAT)
    ends = ends_of(data)
    cuts = sorted({*range(0, ends[-1] + 1, 512), *range(5, ends[-1], 1_111), ends[-1] - 1})
    for cut in cuts:
        corpus = open_tar(tmp_path, data[:cut])
        whole = sum(end <= cut for end in ends)
        reasons = [reason for _, reason in rejects_of(corpus)]
        assert reasons == ["tar-cut"], cut
        assert rejects_of(corpus)[0][0].startswith("a.tar@"), cut
        assert images_of(corpus) == {f"a.tar/{at:04d}.jpg": image_of(at) for at in range(corpus.entries.num_rows)}, cut
        # The first sample tells what the others must have: until a member of the next is there, it may lack something.
        assert corpus.entries.num_rows == (whole if whole != 1 else int(cut >= ends[0] + 1024)), cut


def test_an_empty_archive_is_cut(tmp_path: Path) -> None:
    corpus = open_tar(tmp_path, b"")
    assert (corpus.entries.num_rows, rejects_of(corpus)) == (0, [("a.tar@0", "tar-cut")])


def test_a_damaged_header_costs_its_sample(tmp_path: Path) -> None:
    data = tar_of(samples(0, 6), tarfile.USTAR_FORMAT)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        headers = [member.offset for member in archive]
    for member, offset in enumerate(headers):
        broken = bytearray(data)
        broken[offset + 3] ^= 1
        corpus = open_tar(tmp_path, bytes(broken))
        images = images_of(corpus)
        assert all(image_of(int(origin[6:10])) == image for origin, image in images.items())
        assert (f"a.tar@{offset}", "tar-damaged") in rejects_of(corpus)
        lost = {f"a.tar/{member // 2:04d}.jpg"}
        assert len(images) >= (5 if member > 2 else 4), member
        assert not lost & set(images), member
        assert corpus.num_input in (6, 7), member  # the break, and the image whose label it cost


def test_zeros_inside_an_archive_do_not_hide_the_rest(tmp_path: Path) -> None:
    first, second = tar_of(samples(0, 4)), tar_of(samples(4, 8))
    corpus = open_tar(tmp_path, first + second)
    assert [reason for _, reason in rejects_of(corpus)] == ["tar-damaged"]
    assert corpus.entries.num_rows == 8


def test_what_is_no_archive_is_a_reject(tmp_path: Path) -> None:
    corpus = open_tar(tmp_path, b"this is not a tar" * 1000)
    assert (corpus.entries.num_rows, rejects_of(corpus)) == (0, [("a.tar@0", "tar-damaged")])


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "A.TAR.GZ"])
def test_gzipped_archives(tmp_path: Path, name: str) -> None:
    corpus = open_tar(tmp_path, gzip.compress(tar_of(samples(0, 40))), name)
    assert not corpus.random_access
    assert images_of(corpus) == {f"{name}/{number:04d}.jpg": image_of(number) for number in range(40)}
    back = corpus.entries.table().take(list(reversed(range(40))))
    assert list(corpus.reader.read(back)) == [image_of(number) for number in reversed(range(40))]
    assert corpus.made_of["labels"] == "single"


def test_gzip_of_several_members_and_with_padding(tmp_path: Path) -> None:
    data = tar_of(samples(0, 20))
    packed = b"".join(gzip.compress(data[start : start + 5_000]) for start in range(0, len(data), 5_000))
    assert len(images_of(open_tar(tmp_path, packed + bytes(100), "a.tar.gz"))) == 20


def test_a_gzipped_archive_that_is_cut(tmp_path: Path) -> None:
    packed = gzip.compress(tar_of(samples(0, 200)), 1)
    for cut in (0, 5, 100, len(packed) // 2, len(packed) * 9 // 10):
        corpus = open_tar(tmp_path, packed[:cut], "a.tar.gz")
        assert [reason for _, reason in rejects_of(corpus)] == ["tar-cut"]
        images = images_of(corpus)
        assert images == {f"a.tar.gz/{number:04d}.jpg": image_of(number) for number in range(len(images))}
        assert bool(images) == (cut > 1000)


def test_a_gzipped_archive_that_is_damaged(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(tar_of(samples(0, 50)), 0))
    packed[-6] ^= 1  # the sum of the whole
    corpus = open_tar(tmp_path, bytes(packed), "a.tar.gz")
    assert [reason for _, reason in rejects_of(corpus)] == ["tar-damaged"]
    images = images_of(corpus)
    assert images == {f"a.tar.gz/{number:04d}.jpg": image_of(number) for number in range(len(images))}


def test_an_archive_that_changed_after_listing_is_not_read(tmp_path: Path) -> None:
    for name, pack in (("a.tar", bytes), ("b.tar.gz", gzip.compress)):
        corpus = open_tar(tmp_path, pack(tar_of(samples(0, 2))), name)
        entries = corpus.entries.table()
        (tmp_path / name).write_bytes(pack(tar_of(samples(2, 4))))
        images = corpus.reader.read(entries)
        for _ in range(2):
            with pytest.raises(OSError, match=name):
                next(images)
        assert next(images, "end") == "end"


def test_class_names_come_from_the_card_beside_the_tars(tmp_path: Path) -> None:
    (tmp_path / "shard-000000.tar").write_bytes(tar_of(samples(0, 6)))
    (tmp_path / "shard-000000.parquet").write_bytes(b"the index")
    (tmp_path / "dataset.json").write_text(json.dumps({"schema_version": 2, "class_names": ["cat", "dog", "owl"]}))
    corpus = open_corpus(str(tmp_path))
    assert corpus.class_names == ("cat", "dog", "owl")
    assert labels_of(corpus)["shard-000000.tar/0004.jpg"] == ["dog"]
    (tmp_path / "dataset.json").write_text('{"class_names": ["cat",')
    with pytest.raises(InputError, match="no dataset card"):
        open_corpus(str(tmp_path))


def test_the_reader_travels_to_the_tasks(tmp_path: Path) -> None:
    corpus = open_tar(tmp_path, gzip.compress(tar_of(samples(0, 3))), "a.tgz")
    reader = pickle.loads(pickle.dumps(corpus.reader))
    assert list(reader.read(corpus.entries.table())) == [image_of(number) for number in range(3)]
