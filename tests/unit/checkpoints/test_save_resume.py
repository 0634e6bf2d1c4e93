"""Checkpoints of one process, with plain bytes for what the ranks write: the card is last, and decides everything."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from pipeline.base.collective import Alone
from pipeline.base.digests import sha256_hex
from pipeline.base.errors import ConflictError, FailedError, MismatchError, SupersededError
from pipeline.base.store.local import LocalStore
from pipeline.checkpoints.attempts import check_newest, list_attempts, take_attempt
from pipeline.checkpoints.layout import expected_files, files_of_rank
from pipeline.checkpoints.resume import check_whole, list_steps, resume_newest
from pipeline.checkpoints.save import Saving, save_checkpoint
from pipeline.records.run import CheckpointCard, checkpoint_card_key, list_checkpoint_cards, step_prefix

RUN, MODEL, OPTIMIZER = "r", "mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"


class Noting(LocalStore):
    """Notes the keys in the order in which they are written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[str] = []

    def put(self, key: str, data: bytes) -> None:
        """See Store."""
        super().put(key, data)
        self.written.append(key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store."""
        created = super().put_if_absent(key, data)
        if created:
            self.written.append(key)
        return created


@pytest.fixture
def store(tmp_path: Path) -> Noting:
    """An empty workspace."""
    return Noting(tmp_path / "workspace")


@pytest.fixture
def saving(store: Noting) -> Saving:
    """The first attempt of a run at ZeRO 2 in bf16."""
    return Saving(store, RUN, take_attempt(store, RUN), 2, "bf16", "fingerprint", "dataset", "code")


def content(step: int) -> dict[str, bytes]:
    """What the rank's files of a step hold."""
    return {MODEL: b"model %d" % step * 50, OPTIMIZER: b"optimizer %d" % step * 50}


def save(saving: Saving, step: int, folder: Path, files: dict[str, bytes] | None = None) -> None:
    """Write the rank's files of *step* into a new folder and save them."""
    inside = folder / f"rank-{saving.attempt}-{step}" / "state"
    inside.mkdir(parents=True)
    for name, data in (content(step) if files is None else files).items():
        (inside / name).write_bytes(data)
    save_checkpoint(saving, Alone(), step, step * 10, inside.parent, b"weights %d" % step)


def next_attempt(saving: Saving) -> Saving:
    """As after a restart."""
    return replace(saving, attempt=take_attempt(saving.workspace, RUN))


def resume(saving: Saving, folder: Path) -> CheckpointCard | None:
    """Resume into *folder*."""
    return resume_newest(saving, Alone(), folder)


def test_the_card_is_written_last_and_lists_every_byte(store: Noting, saving: Saving, tmp_path: Path) -> None:
    save(saving, 10, tmp_path)
    card = list_checkpoint_cards(store, RUN)[0]
    assert store.written[-1] == checkpoint_card_key(RUN, 10) == "runs/r/checkpoints/step-00000010/checkpoint.json"
    expected = {f"0001/{name}": data for name, data in content(10).items()} | {"model.safetensors": b"weights 10"}
    listed = {file.name: (file.num_bytes, file.sha256) for file in (*card.files, card.weights)}
    assert listed == {name: (len(data), sha256_hex(data)) for name, data in expected.items()}
    assert {name: store.read(f"{step_prefix(RUN, 10)}/{name}") for name in expected} == expected
    assert (card.step, card.position, card.attempt, card.world_size) == (10, 100, "0001", 1)
    assert check_whole(store, card) is None


def test_a_card_is_never_replaced(store: Noting, saving: Saving, tmp_path: Path) -> None:
    save(saving, 10, tmp_path)
    before = store.read(checkpoint_card_key(RUN, 10))
    with pytest.raises(ConflictError, match="written by attempt 0001"):
        save(next_attempt(saving), 10, tmp_path)
    assert store.read(checkpoint_card_key(RUN, 10)) == before


@pytest.mark.parametrize(
    "files",
    [
        {},
        {MODEL: b"x"},
        {OPTIMIZER: b"x"},
        {MODEL: b"x", OPTIMIZER: b"x", "zero_pp_rank_1_mp_rank_00_optim_states.pt": b"x"},
        {MODEL: b"x", OPTIMIZER.removeprefix("bf16_"): b"x"},
    ],
    ids=["none", "no optimizer", "no model", "one too many", "of another dtype"],
)
def test_without_exactly_the_expected_files_there_is_no_card(
    store: Noting, saving: Saving, tmp_path: Path, files: dict[str, bytes]
) -> None:
    with pytest.raises(FailedError, match=r"checkpoint of step 10: wrote .* expected"):
        save(saving, 10, tmp_path, files)
    assert list_steps(store, RUN) == []
    assert resume(saving, tmp_path / "back") is None


def test_resume_takes_the_newest_and_restores_its_bytes(saving: Saving, tmp_path: Path) -> None:
    for step in (0, 10, 200):
        save(saving, step, tmp_path)
    card = resume(next_attempt(saving), tmp_path / "back")
    assert card is not None
    assert (card.step, card.position) == (200, 2000)
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == content(200)


def test_without_a_checkpoint_there_is_nothing_to_resume(saving: Saving, tmp_path: Path) -> None:
    assert resume(saving, tmp_path / "back") is None


def flip(store: LocalStore, key: str) -> None:
    """Change one bit in the middle."""
    data = bytearray(store.read(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))


def cut(store: LocalStore, key: str) -> None:
    """Leave the first half."""
    data = store.read(key)
    store.put(key, data[: len(data) // 2])


def drop(store: LocalStore, key: str) -> None:
    """Remove it."""
    store.delete(key)


DAMAGES = [(harm, name) for harm in (flip, cut, drop) for name in (f"0001/{MODEL}", f"0001/{OPTIMIZER}")]
DAMAGES += [(cut, "model.safetensors"), (drop, "model.safetensors"), (cut, "checkpoint.json")]


@pytest.mark.parametrize(("harm", "name"), DAMAGES, ids=[f"{harm.__name__} {name}" for harm, name in DAMAGES])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    store: Noting,
    saving: Saving,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[LocalStore, str], None],
    name: str,
) -> None:
    for step in (10, 20):
        save(saving, step, tmp_path)
    harm(store, f"{step_prefix(RUN, 20)}/{name}")
    later = next_attempt(saving)
    with caplog.at_level(logging.WARNING):
        card = resume(later, tmp_path / "back")
    assert card is not None
    assert card.step == 10
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == content(10)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "step 20" in told[0]
    assert name in told[0]
    assert list_steps(store, RUN) == [10], "its card has to go, so that the step can be saved again"
    save(later, 20, tmp_path)
    again = resume(next_attempt(saving), tmp_path / "back again")
    assert again is not None
    assert (again.step, again.attempt) == (20, "0002")
    assert {path.name: path.read_bytes() for path in (tmp_path / "back again").iterdir()} == content(20)


def test_when_all_are_damaged_it_starts_anew(store: Noting, saving: Saving, tmp_path: Path) -> None:
    for step in (10, 20):
        save(saving, step, tmp_path)
        flip(store, f"{step_prefix(RUN, step)}/0001/{MODEL}")
    assert resume(next_attempt(saving), tmp_path / "back") is None
    assert list_steps(store, RUN) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "other"}, "fingerprint: fingerprint -> other"),
        ({"dataset_digest": "other"}, "dataset_digest: dataset -> other"),
        ({"zero_stage": 3}, "zero_stage: 2 -> 3"),
        ({"dtype": "fp32"}, "dtype: bf16 -> fp32"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_field(
    store: Noting, saving: Saving, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    save(saving, 10, tmp_path)
    with pytest.raises(MismatchError, match=f"step 10 cannot be resumed: {said}$"):
        resume(replace(saving, **change), tmp_path / "back")
    assert list_steps(store, RUN) == [10], "a refused checkpoint is not a damaged one"


def test_another_world_size_is_refused(store: Noting, saving: Saving, tmp_path: Path) -> None:
    save(saving, 10, tmp_path)
    card = list_checkpoint_cards(store, RUN)[0]
    store.put(checkpoint_card_key(RUN, 10), card.model_copy(update={"world_size": 4}).to_json())
    with pytest.raises(MismatchError, match="world_size: 4 -> 1"):
        resume(saving, tmp_path / "back")


def test_several_differences_are_told_at_once(saving: Saving, tmp_path: Path) -> None:
    save(saving, 10, tmp_path)
    with pytest.raises(MismatchError, match=r"fingerprint: .*; zero_stage: "):
        resume(replace(saving, fingerprint="other", zero_stage=1), tmp_path / "back")


def test_a_superseded_attempt_commits_nothing(store: Noting, saving: Saving, tmp_path: Path) -> None:
    newer = next_attempt(saving)
    with pytest.raises(SupersededError, match="attempt 0001 of run r was superseded by attempt 0002"):
        save(saving, 10, tmp_path)
    assert list_steps(store, RUN) == []
    save(newer, 10, tmp_path)
    assert list_steps(store, RUN) == [10]


def test_attempts_are_counted(store: Noting) -> None:
    assert [take_attempt(store, RUN) for _ in range(12)] == [f"{number:04d}" for number in range(1, 13)]
    assert take_attempt(store, "other") == "0001"
    check_newest(store, RUN, "0012")
    with pytest.raises(SupersededError):
        check_newest(store, RUN, "0011")


def test_racing_attempts_get_distinct_numbers(store: Noting) -> None:
    racers = 16
    start = Barrier(racers)

    def race(_: int) -> str:
        start.wait()
        return take_attempt(store, RUN)

    with ThreadPoolExecutor(racers) as pool:
        taken = list(pool.map(race, range(racers)))
    assert sorted(taken) == [f"{number:04d}" for number in range(1, racers + 1)]
    assert list_attempts(store, RUN) == sorted(taken)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_ranks_together_need_every_file(stage: int, dtype: str) -> None:
    parts = [files_of_rank(rank, 4, stage, dtype) for rank in range(4)]
    assert set().union(*parts) == expected_files(4, stage, dtype)
    assert len(expected_files(4, stage, dtype)) == {0: 1, 1: 5, 2: 5, 3: 8}[stage]
