"""Damage at rest: ``verify`` names it, the same ``shard`` command makes that anew and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.support.command import vitpipe
from tests.support.faults import FOLDERS, NAME, Ended, Sharding, content, one_line

Damage = Callable[[Path], None]


def flip(path: Path) -> None:
    """One bit in the middle, of a file that keeps its inode."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def drop(path: Path) -> None:
    """The file is gone."""
    path.unlink()


def cut(path: Path) -> None:
    """The second half is gone."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def verify(workspace: Path, *more: str) -> Ended:
    """``vitpipe verify``; both outputs as one."""
    done = vitpipe("verify", "--workspace", workspace, *more)
    return Ended(done.returncode, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def made(photographs: Path, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole dataset, to be copied."""
    workspace = tmp_path_factory.mktemp("made")
    assert Sharding(photographs, address=cluster.address).run(workspace).code == 0
    return workspace


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each file."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()}


TABLES = ("shards.parquet", "rejects.parquet", "duplicates.parquet")
CASES: dict[str, dict[str, Damage]] = {
    "bits": {"shard-000002.tar": flip, "shard-000005.parquet": flip, "rejects.parquet": flip},
    "gone": {"shard-000003.tar": drop, "shard-000007.parquet": drop, "duplicates.parquet": drop},
    "table": {"shards.parquet": flip, "shard-000004.tar": flip},
}
ALONE = {
    f"{damage.__name__} {name}": {name: damage}
    for damage in (flip, drop, cut)
    for name in ("shard-000001.tar", "shard-000001.parquet", *TABLES)
}


def check_repair(sharding: Sharding, made: Path, workspace: Path, damages: dict[str, Damage]) -> None:
    """Copy the dataset, damage it, see it named, shard again, see it whole and the rest untouched."""
    shutil.copytree(made, workspace, copy_function=shutil.copy2)
    folder = workspace / "datasets" / NAME
    for name, damage in damages.items():
        damage(folder / name)
    before = stamps(folder)
    told = verify(workspace)
    assert told.code == 1
    named = ["shards.parquet"] if "shards.parquet" in damages else list(damages)
    for name in named:
        assert f"{NAME}: {name}" in told.told
    ended = sharding.run(workspace)
    assert ended.code == 0, ended.told
    assert content(workspace) == content(made)
    after = stamps(folder)
    untouched = [name for name in before if name.startswith("shard-") and stem(name) not in map(stem, damages)]
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    assert len(untouched) >= 2 * 8
    assert verify(workspace).code == 0


def stem(name: str) -> str:
    """What a shard and its index share."""
    return name.partition(".")[0]


@pytest.mark.parametrize("case", ["bits", *(pytest.param(case, marks=pytest.mark.long) for case in ("gone", "table"))])
def test_damage_is_named_and_made_again(case: str, sharding: Sharding, made: Path, tmp_path: Path) -> None:
    check_repair(sharding, made, tmp_path / "workspace", CASES[case])


def test_a_source_that_was_copied_anew_repairs(
    sharding: Sharding, made: Path, photographs: Path, tmp_path: Path
) -> None:
    """The same bytes with other inodes and times: nothing but the damage is made again, to the same bytes."""
    copy = tmp_path / "copy"
    shutil.copytree(photographs, copy, copy_function=shutil.copyfile)
    damages = {"rejects.parquet": flip, "shard-000002.tar": cut, "shard-000006.parquet": drop}
    check_repair(replace(sharding, corpus=copy), made, tmp_path / "workspace", damages)


@pytest.mark.long
@pytest.mark.parametrize("case", ALONE)
def test_each_damage_alone(case: str, sharding: Sharding, made: Path, tmp_path: Path) -> None:
    check_repair(sharding, made, tmp_path / "workspace", ALONE[case])


def test_a_damaged_card_is_named_by_both_commands(sharding: Sharding, made: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(made, workspace)
    cut(workspace / "datasets" / NAME / "dataset.json")
    before = content(workspace)
    for ended in (verify(workspace), sharding.run(workspace)):
        assert ended.code == 1
        assert "dataset.json is not valid JSON" in one_line(ended.told)
    assert content(workspace) == before


def test_a_changed_source_cannot_repair(sharding: Sharding, photographs: Path, tmp_path: Path) -> None:
    corpus, workspace = tmp_path / "corpus", tmp_path / "workspace"
    shutil.copytree(photographs, corpus)
    sharding = replace(sharding, corpus=corpus)
    assert sharding.run(workspace).code == 0
    whole = content(workspace)
    for image in (corpus / FOLDERS[1]).glob("0*.jpeg"):  # some image of every shard; its size and pixels stay
        data = bytearray(image.read_bytes())
        data[15] ^= 1  # the density in its JFIF header
        image.write_bytes(bytes(data))
    drop(workspace / "datasets" / NAME / "shard-000006.tar")
    ended = sharding.run(workspace)
    assert ended.code == 1
    assert "the source has changed" in one_line(ended.told)
    left = content(workspace)
    assert left == {name: whole[name] for name in left}
    assert set(whole) - set(left) <= {f"datasets/{NAME}/shard-000006{end}" for end in (".tar", ".parquet")}
