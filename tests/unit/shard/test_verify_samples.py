"""The full depth looks at content: damage that every digest agrees with is found, and counts are counted again."""

from __future__ import annotations

import io
import signal
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.seeds import generator
from pipeline.base.store import Store, open_store
from pipeline.images.check import CheckOptions
from pipeline.images.sandbox import shared_sandbox
from pipeline.records.dataset import INDEX_SCHEMA, DatasetStatistics
from pipeline.shard import verify as samples_module
from pipeline.shard.commit import _FORMAT
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.writer import TarWriter
from tests.support.damage import edit_card, files_of, flip, flipped, index_rows, problems_of, put_index, seal
from tests.support.datasets import corpus_of, make_dataset, shard_corpus
from tests.support.pictures import bmp, noise

TAR, INDEX = "shard-000000.tar", "shard-000000.parquet"


@pytest.fixture
def target(tmp_path: Path) -> Store:
    """The folder of a dataset of 4 images in one shard."""
    workspace = open_store(str(tmp_path))
    make_dataset(workspace, "tiny", num_samples=4, num_classes=2, max_samples=4, size=6)
    return open_store(f"{workspace.uri}/datasets/tiny")


def forged(target: Store) -> list[str]:
    """What the full depth finds once every digest fits what is stored; the others find nothing then."""
    seal(target)
    assert problems_of(target, "bytes") == []
    return problems_of(target, "full")


def rebuilt(target: Store, members: list[tuple[str, bytes]]) -> None:
    """Replace the tar by one of *members*."""
    buffer = io.BytesIO()
    tar = TarWriter(buffer)
    for name, data in members:
        tar.add(name, data)
    tar.close()
    target.put(TAR, buffer.getvalue())


def members_of(target: Store) -> list[tuple[str, bytes]]:
    """Names and data of the tar's members."""
    with tarfile.open(fileobj=io.BytesIO(target.read(TAR))) as file:
        return [(member.name, file.extractfile(member).read()) for member in file]


def test_sealing_alone_changes_nothing(target: Store) -> None:
    assert forged(target) == []


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("header", "its tar header is damaged"),
        ("image", "its bytes are damaged"),
        ("label header", "its label is not the one of the index"),
        ("label", "its label is not the one of the index"),
    ],
)
def test_a_flip_that_the_digests_agree_with_is_told_with_its_sample(target: Store, place: str, told: str) -> None:
    row = index_rows(target, 0)[2]
    offset = row["label_offset"] if "label" in place else row["image_offset"]
    flip(target, TAR, offset - 512 + 5 if "header" in place else offset)
    assert forged(target) == [f"{TAR}: sample {row['key']} at byte {row['image_offset']}: {told}"]


def test_no_byte_of_a_shard_is_left_out(target: Store) -> None:
    """Headers, data, padding and the end of the archive: anywhere at all."""
    whole = target.read(TAR)
    bits = generator(3, "bits").integers(0, 8, len(whole))
    for at in [*range(int(bits[0]), len(whole), 211), len(whole) - 1, len(whole) - 1_024]:
        target.put(TAR, flipped(whole, at, int(bits[at])))
        seal(target)
        assert files_of(problems_of(target, "full")) == {TAR}, at


def test_pixels_that_changed_with_every_digest_are_found_by_the_card(tmp_path: Path) -> None:
    """A BMP has no checksums: one pixel with other digests all the way up. The colours of the card are left."""
    workspace = open_store(str(tmp_path))
    images: dict[str, bytes | None] = {f"{at}.bmp": bmp(noise(6, 6, at)) for at in range(3)}
    shard_corpus(workspace, "plain", corpus_of(images, {}, ()), ShardRecipe())
    target = open_store(f"{workspace.uri}/datasets/plain")
    rows = index_rows(target, 0)
    flip(target, TAR, rows[1]["image_offset"] + rows[1]["image_bytes"] - 3, bit=7)
    start = rows[1]["image_offset"]
    rows[1]["sha256"] = sha256_hex(target.read(TAR)[start : start + rows[1]["image_bytes"]])
    put_index(target, 0, rows)
    problems = forged(target)
    assert files_of(problems) == {"dataset.json"}
    assert any("channel_mean" in problem for problem in problems)


def test_an_image_that_no_longer_decodes_is_told(target: Store) -> None:
    rows, members = index_rows(target, 0), members_of(target)
    at = next(place for place, (name, _) in enumerate(members) if name == f"{rows[1]['key']}.png")
    data = flipped(members[at][1], len(members[at][1]) // 2)
    members[at] = (members[at][0], data)
    rebuilt(target, members)
    rows[1]["sha256"] = sha256_hex(data)
    put_index(target, 0, rows)
    (problem,) = forged(target)
    assert problem.startswith(f"{TAR}: sample {rows[1]['key']} at byte {rows[1]['image_offset']}: ")
    assert problem.rpartition(": ")[2] in ("truncated", "undecodable", "not-an-image")


@pytest.mark.parametrize(
    ("change", "file", "told"),
    [
        ({"image_offset": 1_024}, TAR, "its tar header is damaged"),
        ({"image_offset": 0}, TAR, "its tar header is damaged"),
        ({"image_offset": -5}, TAR, "its tar header is damaged"),
        ({"image_offset": 2**62}, TAR, "its tar header is damaged"),
        ({"image_bytes": 2**40}, TAR, "its tar header is damaged"),
        ({"image_bytes": -1}, TAR, "its tar header is damaged"),
        ({"label_offset": 0}, TAR, "its label is not the one of the index"),
        ({"label_bytes": 2}, TAR, "its label is not the one of the index"),
        ({"labels": [1, 0]}, TAR, "its label is not the one of the index"),
        ({"labels": []}, TAR, "its label is not the one of the index"),
        ({"labels": [7]}, TAR, "its label is not the one of the index"),
        ({"sha256": "0" * 64}, TAR, "its bytes are damaged"),
        ({"format": "jpg"}, TAR, "its tar header is damaged"),
        ({"format": "é"}, TAR, "its tar header is damaged"),
        ({"format": "x" * 200}, TAR, "its tar header is damaged"),
        ({"key": "0" * 20}, INDEX, "its key is not the one of its origin"),
        ({"origin": "another"}, INDEX, "its key is not the one of its origin"),
        ({"width": 7}, INDEX, "the image is 6 x 6 png, the index says 7 x 6 png"),
        ({"height": 5}, INDEX, "the image is 6 x 6 png, the index says 6 x 5 png"),
    ],
)
def test_a_row_that_does_not_fit_its_sample_is_told(
    target: Store, change: dict[str, Any], file: str, told: str
) -> None:
    rows = index_rows(target, 0)
    rows[2] |= change
    put_index(target, 0, rows)
    (problem,) = forged(target)
    assert problem.startswith(f"{file}: sample {rows[2]['key']}")
    assert problem.endswith(told)


def test_an_index_with_a_row_less_or_twice_is_told(target: Store) -> None:
    rows = index_rows(target, 0)
    put_index(target, 0, rows[:3])
    assert forged(target) == [f"{INDEX}: 3 samples, shards.parquet says 4"]
    put_index(target, 0, [*rows, rows[0]])
    assert forged(target) == [f"{INDEX}: 5 samples, shards.parquet says 4"]


def test_rows_in_another_order_are_told(target: Store) -> None:
    put_index(target, 0, list(reversed(index_rows(target, 0))))
    assert files_of(forged(target)) == {TAR}


def test_what_is_no_index_is_told(target: Store) -> None:
    rows = index_rows(target, 0)
    put_index(target, 0, [rows[0] | {"labels": None}, *rows[1:]])
    assert forged(target) == [f"{INDEX}: has rows without a value"]
    put_index(target, 0, rows, pa.schema([field for field in INDEX_SCHEMA if field.name != "width"]))
    assert forged(target) == [f"{INDEX}: has other columns than an index"]
    target.put(INDEX, b"no parquet")
    assert forged(target) == [f"{INDEX}: cannot be read as parquet"]


def test_what_stands_beside_the_samples_is_told(target: Store) -> None:
    """A member that the index does not name, whether as a sample of its own or as a field of the last one."""
    members = members_of(target)
    for extra in ("zzz.txt", members[-1][0].replace(".png", ".txt")):
        rebuilt(target, [*members, (extra, b"hello")])
        problems = forged(target)
        assert f"{TAR}: holds something that its index does not name" in problems
        assert files_of(problems) == {TAR}
        assert (f"{TAR}: webdataset reads other samples than its index names" in problems) == (extra == "zzz.txt")


@pytest.mark.parametrize("name", sorted(set(DatasetStatistics.model_fields) - {"num_multi_label"}))
def test_statistics_of_the_card_are_counted_again(target: Store, name: str) -> None:
    """Each of them, changed so that the card still adds up."""

    def shift(value: Any) -> Any:
        if isinstance(value, dict):
            return {f"{key}1": count for key, count in value.items()}
        if isinstance(value, list):
            return [value[0] + 1, value[1] - 1, *value[2:]]
        return value + 1

    edit_card(target, lambda card: card["statistics"].update({name: shift(card["statistics"][name])}))
    assert problems_of(target, "bytes") == []
    problems = problems_of(target, "full")
    assert files_of(problems) == {"dataset.json"}
    assert all(f"counted again: {name}" in problem for problem in problems)


def test_the_number_of_samples_with_several_labels_is_counted_again(target: Store) -> None:
    edit_card(target, lambda card: card["statistics"].update(num_multi_label=1))
    assert problems_of(target, "full") == ["dataset.json: counted again: num_multi_label: 1 -> 0"]


def test_labels_beyond_the_classes_are_told(target: Store) -> None:
    def drop(card: dict[str, Any]) -> None:
        card["class_names"].pop()
        card["statistics"]["label_counts"].pop()
        made_of = [_FORMAT, card["recipe"], card["listing_digest"], card["class_names"]]
        card["fingerprint"] = fingerprint(made_of)  # or that alone would be told

    edit_card(target, drop)
    assert problems_of(target, "full") == ["dataset.json: 2 labels are beyond its 1 classes"]


def test_class_names_are_held_by_the_fingerprint(target: Store) -> None:
    edit_card(target, lambda card: card["class_names"].reverse())
    for depth in ("fast", "bytes", "full"):
        wanted = "dataset.json: its fingerprint is not that of its recipe, listing and class names"
        assert problems_of(target, depth)[0] == wanted


def test_the_full_depth_asks_webdataset(target: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "keys_by_webdataset", lambda _: ["another"])
    assert problems_of(target, "bytes") == []
    assert problems_of(target, "full") == [f"{TAR}: webdataset reads other samples than its index names"]


def test_only_the_full_depth_decodes(target: Store) -> None:
    """A decoder that dies at every image shows who calls it: also where a damaged shard is looked at closer."""
    flip(target, TAR, index_rows(target, 0)[0]["image_offset"])
    sandbox = shared_sandbox(CheckOptions(statistics=True))
    sandbox.close()
    problems_of(target, "fast")
    assert len(problems_of(target, "bytes")) == 2
    assert sandbox.pid is None
    problems_of(target, "full")
    assert sandbox.pid is not None


def test_a_decoder_that_is_killed_costs_nothing(target: Store) -> None:
    import os

    sandbox = shared_sandbox(CheckOptions(statistics=True))
    assert problems_of(target, "full") == []
    assert sandbox.pid is not None
    os.kill(sandbox.pid, signal.SIGKILL)
    assert problems_of(target, "full") == []
