"""Other readers open the shards: stock webdataset, tar, tarfile; and DALI's index names what stands in them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.base.errors import DamageError
from pipeline.base.progress import Silent
from pipeline.base.store import Store, open_store
from pipeline.records.corpus import key_of
from pipeline.records.dataset import DatasetCard, read_dataset_card
from pipeline.shard.dali import put_dali_indexes
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.verify import keys_by_webdataset
from tests.support.damage import flip, index_rows
from tests.support.datasets import corpus_of, shard_corpus
from tests.support.pictures import encoded, noise, png

IMAGES: dict[str, bytes | None] = {
    **{f"{at}.png": png(noise(9, 7, at)) for at in range(8)},
    **{f"sub folder/{at}.jpg": encoded(Image.fromarray(noise(40, 30, at)), "JPEG") for at in range(8)},
}
# None, one and several of them.
LABELS = {origin: [[], [2], [0, 3]][at % 3] for at, origin in enumerate(IMAGES)}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One dataset with a single label on each image, one with none to two, each in several shards."""
    root = tmp_path_factory.mktemp("workspace")
    single = {origin: [at % 4] for at, origin in enumerate(IMAGES)}
    for name, labels in (("single", single), ("several", LABELS)):
        corpus = corpus_of(IMAGES, labels, ("a", "b", "c", "d"))
        shard_corpus(open_store(str(root)), name, corpus, ShardRecipe(max_samples=6))
    return root


def tars(workspace: Path, name: str) -> list[Path]:
    """The shards of a dataset."""
    found = sorted((workspace / "datasets" / name).glob("shard-*.tar"))
    assert len(found) == 3
    return found


def target_of(workspace: Path, name: str) -> tuple[Store, DatasetCard]:
    """The folder of a dataset, and its card."""
    return open_store(str(workspace / "datasets" / name)), read_dataset_card(open_store(str(workspace)), name)


def pixels(data: bytes) -> Any:
    """As Pillow decodes them."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_webdataset_decodes_images_and_labels(workspace: Path) -> None:
    urls = [str(path) for path in tars(workspace, "single")]
    stock = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("__key__", "jpg;png", "cls")
    origins = {key_of(origin): origin for origin in IMAGES}
    found = {origins[key]: (image, label) for key, image, label in stock}
    assert set(found) == set(IMAGES)
    for at, (origin, data) in enumerate(IMAGES.items()):
        image, label = found[origin]
        assert label == at % 4
        assert np.array_equal(np.asarray(image), pixels(data or b""))


def test_webdataset_reads_several_labels_as_json(workspace: Path) -> None:
    urls = [str(path) for path in tars(workspace, "several")]
    origins = {key_of(origin): origin for origin in IMAGES}
    found = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode("pil"):
        labels = [sample["cls"]] if "cls" in sample else sample["json"]["labels"]
        assert ("cls" in sample) == (len(labels) == 1)
        found[origins[sample["__key__"]]] = labels
    assert found == LABELS


@pytest.mark.parametrize("name", ["single", "several"])
def test_tar_extracts_the_bytes(workspace: Path, tmp_path: Path, name: str) -> None:
    extracted = {}
    for path in tars(workspace, name):
        done = subprocess.run(["tar", "xf", path, "-C", tmp_path], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True).stdout.split()
        extracted |= {member: (tmp_path / member).read_bytes() for member in listed}
    images = {member: data for member, data in extracted.items() if not member.endswith((".cls", ".json"))}
    assert images == {f"{key_of(origin)}.{origin[-3:]}": data for origin, data in IMAGES.items()}
    assert len(extracted) == 2 * len(images)


@pytest.mark.parametrize("name", ["single", "several"])
def test_the_index_names_what_tarfile_finds(workspace: Path, name: str) -> None:
    for number, path in enumerate(tars(workspace, name)):
        with tarfile.open(path) as file:
            members = {member.name: (member.offset_data, member.size) for member in file}
        named = {}
        for row in index_rows(open_store(str(path.parent)), number):
            label = "cls" if len(row["labels"]) == 1 else "json"
            named[f"{row['key']}.{label}"] = (row["label_offset"], row["label_bytes"])
            named[f"{row['key']}.{row['format']}"] = (row["image_offset"], row["image_bytes"])
        assert named == members


def test_keys_by_webdataset_are_those_of_the_index(workspace: Path) -> None:
    for number, path in enumerate(tars(workspace, "several")):
        with path.open("rb") as file:
            found = keys_by_webdataset(file)
        assert found == [row["key"] for row in index_rows(open_store(str(path.parent)), number)]


def samples_as_dali_sees_them(path: Path) -> list[list[str]]:
    """What DALI's own tool would write of a tar, said another way: its members grouped by what stands before the
    first dot of their names, each with extension, place and size of its data, and name."""
    samples: list[list[str]] = []
    last = None
    with tarfile.open(path) as file:
        for member in file:
            key, _, extension = member.name.partition(".")
            if key != last:
                samples.append([])
                last = key
            samples[-1] += [extension, str(member.offset_data), str(member.size), member.name]
    return samples


@pytest.mark.parametrize("name", ["single", "several"])
def test_dali_indexes_are_what_the_tars_hold(workspace: Path, tmp_path: Path, name: str) -> None:
    target, card = target_of(workspace, name)
    assert put_dali_indexes(target, card, open_store(str(tmp_path / "out")), Silent()) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"shard-00000{at}.idx" for at in range(3)]
    for path in tars(workspace, name):
        text = (tmp_path / "out" / f"{path.stem}.idx").read_text(encoding="ascii")
        assert text.endswith("\n")
        first, *lines = text.splitlines()
        samples = samples_as_dali_sees_them(path)
        assert first == f"v1.2 {len(samples)}"
        assert [line.split(" ") for line in lines] == samples


def test_gnu_tar_counts_the_same_blocks(workspace: Path, tmp_path: Path) -> None:
    """DALI's tool takes offsets from ``tar --block-num``: the block of the member's header."""
    target, card = target_of(workspace, "several")
    put_dali_indexes(target, card, open_store(str(tmp_path)), Silent())
    for path in tars(workspace, "several"):
        command = ["tar", "--list", "--block-num", "--file", path]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        blocks = {line.split(": ")[1]: int(line.split(": ")[0].removeprefix("block ")) for line in listed[: 2 * 6]}
        words = " ".join((tmp_path / f"{path.stem}.idx").read_text().splitlines()[1:]).split(" ")
        for offset, name in zip(words[1::4], words[3::4], strict=True):
            assert int(offset) == (blocks[name] + 1) * 512


def test_dali_indexes_are_made_of_whole_indexes_and_of_no_tar(workspace: Path, tmp_path: Path) -> None:
    target, card = target_of(workspace, "single")
    copy = open_store(str(tmp_path / "copy"))
    for info in target.list():
        if not info.key.endswith(".tar"):
            copy.put(info.key, target.read(info.key))
    assert put_dali_indexes(copy, card, open_store(str(tmp_path / "out")), Silent()) == 3
    flip(copy, "shard-000001.parquet", 100)
    with pytest.raises(DamageError, match=r"shard-000001\.parquet is damaged"):
        put_dali_indexes(copy, card, open_store(str(tmp_path / "out")), Silent())
    copy.delete("shard-000001.parquet")
    with pytest.raises(DamageError, match=r"shard-000001\.parquet is missing"):
        put_dali_indexes(copy, card, open_store(str(tmp_path / "out")), Silent())


def test_importing_it_does_not_bring_torch() -> None:
    code = (
        "import sys, pipeline.shard.verify; print(json.dumps([n for n in ('torch', 'webdataset') if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
