"""The bytes of a shard: the same for ever, and read alike by tar, tarfile and webdataset."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.digests import sha256_hex
from pipeline.records.dataset import member_header
from pipeline.shard.verify import keys_by_webdataset
from pipeline.shard.writer import TarWriter

MEMBERS = {"0a1b.cls": b"7", "0a1b.jpg": bytes(range(256)) * 3, "ffee.json": b'{"labels": []}', "ffee.png": b"x" * 512}
GOLDEN_SHA256 = "0ca23ebb226865d639be3de55d85dd0c98dbf66fe6095eb567f2d8afc4e44d41"


def archive_of(members: dict[str, bytes]) -> tuple[bytes, dict[str, int]]:
    """The archive of *members* and the offsets that the writer named."""
    file = io.BytesIO()
    tar = TarWriter(file)
    offsets = {name: tar.add(name, data) for name, data in members.items()}
    digest = tar.close()
    assert digest == sha256_hex(file.getvalue())
    assert tar.num_bytes == len(file.getvalue())
    return file.getvalue(), offsets


def test_the_golden_archive() -> None:
    """Changing it changes the bytes of every shard: raise ``identity._FORMAT`` then."""
    archive, _ = archive_of(MEMBERS)
    assert sha256_hex(archive) == GOLDEN_SHA256


def test_tarfile_reads_the_members_with_nothing_of_this_machine_in_them() -> None:
    archive, _ = archive_of(MEMBERS)
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        members = file.getmembers()
        contents = {member.name: file.extractfile(member).read() for member in members}
    assert contents == MEMBERS
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
        assert (member.mode, member.type) == (0o444, tarfile.REGTYPE)


def test_tar_lists_the_members(tmp_path: Path) -> None:
    archive, _ = archive_of(MEMBERS)
    (tmp_path / "x.tar").write_bytes(archive)
    listed = subprocess.run(["tar", "tf", "x.tar"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert listed.stdout.split() == list(MEMBERS)
    assert listed.stderr == ""


def test_webdataset_reads_the_samples(tmp_path: Path) -> None:
    archive, _ = archive_of(MEMBERS)
    (tmp_path / "x.tar").write_bytes(archive)
    samples = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["0a1b", "ffee"]
    assert samples[0]["cls"] == b"7"
    assert samples[0]["jpg"] == MEMBERS["0a1b.jpg"]
    assert samples[1]["png"] == MEMBERS["ffee.png"]
    assert keys_by_webdataset(io.BytesIO(archive)) == ["0a1b", "ffee"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.from_regex(r"[0-9a-f]{20}\.(jpg|png|cls|json)", fullmatch=True), st.binary(max_size=2_000), max_size=8
    )
)
def test_any_members_come_back_from_the_offsets_named(members: dict[str, bytes]) -> None:
    archive, offsets = archive_of(members)
    assert len(archive) % 10_240 == 0
    for name, offset in offsets.items():
        assert offset % 512 == 0
        assert archive[offset : offset + len(members[name])] == members[name]
        assert archive[offset - 512 : offset] == member_header(name, len(members[name]))
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        assert {member.name: file.extractfile(member).read() for member in file} == members


def test_a_header_belongs_to_one_name_and_size() -> None:
    headers = {member_header(name, size) for name in ("a.jpg", "b.jpg", "a.png") for size in (0, 1, 10**9)}
    assert len(headers) == 9


@pytest.mark.parametrize("count", [0, 1])
def test_small_archives_are_whole(count: int) -> None:
    archive, _ = archive_of(dict(list(MEMBERS.items())[:count]))
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        assert len(file.getmembers()) == count
