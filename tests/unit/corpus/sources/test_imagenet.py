"""ImageNet's tar of tars: entries point into the outer archive, the inner one's name is the class."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from pipeline.corpus import open_corpus
from tests.support.sources import images_of, labels_of, rejects_of

SYNSETS = ("n01440764", "n01443537", "n02123045")


def tar_of(files: dict[str, bytes], *more: tuple[str, bytes]) -> bytes:
    """An archive of *files*, and of *more*, whose names may have been there, as ``tar`` makes it."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in [*files.items(), *more]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def inner(synset: str, num_images: int = 4) -> dict[str, bytes]:
    """The images of one class."""
    return {f"{synset}_{at}.JPEG": f"{synset} {at} ".encode() * (100 * at + 1) for at in range(num_images)}


def outer() -> bytes:
    """Three classes."""
    return tar_of({f"{synset}.tar": tar_of(inner(synset)) for synset in SYNSETS})


def expected() -> dict[str, bytes]:
    """What is in it, by origin."""
    return {f"train.tar/{synset}.tar/{name}": data for synset in SYNSETS for name, data in inner(synset).items()}


def test_images_are_read_out_of_the_inner_archives(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(outer())
    corpus = open_corpus(str(tmp_path / "train.tar"))
    assert corpus.made_of["sources"][0]["kind"] == "imagenet"
    assert corpus.class_names == SYNSETS
    assert images_of(corpus) == expected()
    assert labels_of(corpus)["train.tar/n01443537.tar/n01443537_2.JPEG"] == ["n01443537"]
    assert corpus.random_access
    assert images_of(open_corpus(str(tmp_path))) == expected()  # its folder too


def test_a_class_table_maps_synsets_to_names(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(outer())
    (tmp_path / "classes.csv").write_text("synset,name\nn02123045,tabby\nn01440764,tench\n")
    corpus = open_corpus(str(tmp_path / "train.tar"), classes=str(tmp_path / "classes.csv"))
    assert corpus.class_names == ("tabby", "tench")
    assert labels_of(corpus)["train.tar/n02123045.tar/n02123045_0.JPEG"] == ["tabby"]
    assert {reason for _, reason in rejects_of(corpus)} == {"label-unknown"}
    assert len(rejects_of(corpus)) == 4


def test_a_plain_tar_of_images_is_none(tmp_path: Path) -> None:
    (tmp_path / "val.tar").write_bytes(tar_of({f"ILSVRC2012_val_{at:08d}.JPEG": b"x" for at in range(3)}))
    corpus = open_corpus(str(tmp_path / "val.tar"))
    assert corpus.made_of["sources"][0]["kind"] == "webdataset"
    assert labels_of(corpus) == {f"val.tar/ILSVRC2012_val_{at:08d}.JPEG": [] for at in range(3)}


def test_cut_anywhere(tmp_path: Path) -> None:
    data = outer()
    for cut in (*range(512, len(data) - 10_240, 7_000), 700, 1_500):
        (tmp_path / "train.tar").write_bytes(data[:cut])
        corpus = open_corpus(str(tmp_path / "train.tar"))
        images = images_of(corpus)
        assert images.items() <= expected().items()
        assert [reason for _, reason in rejects_of(corpus)] == ["tar-cut"], cut
        whole = [image for image in expected().values() if data.index(image) + -(-len(image) // 512) * 512 <= cut]
        assert len(images) == len(whole), cut


def test_what_is_wrong_inside(tmp_path: Path) -> None:
    good = inner("n01440764", 2)
    broken = bytearray(tar_of(inner("n01443537", 3)))
    broken[3] ^= 1
    inside = tar_of({"../x.JPEG": b"x", "/abs.JPEG": b"x", "readme.txt": b"x", "n0_1.JPEG": b"fine"})
    files = {"n01440764.tar": tar_of(good), "n01443537.tar": bytes(broken), "n02123045.tar": inside}
    files |= {"notes.txt": b"x", "/abs/n1.tar": tar_of(good)}
    (tmp_path / "train.tar").write_bytes(tar_of(files, ("n01440764.tar", tar_of(good))))
    corpus = open_corpus(str(tmp_path / "train.tar"))
    assert sorted(labels_of(corpus)) == [
        "train.tar/n01440764.tar/n01440764_0.JPEG",
        "train.tar/n01440764.tar/n01440764_1.JPEG",
        "train.tar/n01443537.tar/n01443537_1.JPEG",
        "train.tar/n01443537.tar/n01443537_2.JPEG",
        "train.tar/n02123045.tar/n0_1.JPEG",
    ]
    reasons = sorted(reason for _, reason in rejects_of(corpus))
    assert reasons.count("member-refused") == 3
    assert reasons.count("key-repeated") == 2
    assert reasons.count("tar-damaged") >= 1


@pytest.mark.parametrize("name", ["n01440764.tar.gz", "x.zip"])
def test_an_archive_of_other_archives_has_no_images(tmp_path: Path, name: str) -> None:
    (tmp_path / "train.tar").write_bytes(tar_of({name: b"x"}))
    corpus = open_corpus(str(tmp_path / "train.tar"))
    assert (corpus.entries.num_rows, [reason for _, reason in rejects_of(corpus)]) == (0, ["image-missing"])
