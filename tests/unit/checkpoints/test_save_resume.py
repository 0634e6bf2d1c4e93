"""Checkpoints of one process: the card is last and decides everything; what comes back is what was saved."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, InputError, MismatchError, SupersededError
from pipeline.base.store.local import LocalStore
from pipeline.base.world import Collective, SingleProcess, World
from pipeline.checkpoints.card import check_complete, check_newest, list_attempts, take_attempt
from pipeline.checkpoints.reader import CheckpointReader
from pipeline.checkpoints.resume import resume, resume_newest
from pipeline.checkpoints.retention import held_steps
from pipeline.checkpoints.state import EMA, WEIGHT
from pipeline.records.record import parse_record
from pipeline.records.run import (
    CheckpointCard,
    checkpoint_card_key,
    list_checkpoint_cards,
    list_steps,
    parse_reference,
    read_checkpoint_card,
    step_prefix,
)
from tests.support.states import (
    KINDS,
    RUN,
    SHAPES,
    Cut,
    State,
    alone_writer,
    new_saving,
    restored,
    run_threads,
    same,
    save_steps,
    thread_writer,
    trained,
)


class Noting(LocalStore):
    """Notes the keys in the order in which they appear."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[str] = []

    def incoming(self, key: str) -> Any:
        """See Store."""
        self.written.append(key)
        return super().incoming(key)

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


def test_the_card_is_written_last_and_lists_every_byte(store: Noting) -> None:
    save_steps(new_saving(store), 10)
    card = read_checkpoint_card(store, RUN, 10)
    assert store.written[-1] == checkpoint_card_key(RUN, 10) == "runs/r/checkpoints/step-00000010/checkpoint.json"
    names = ["0001/rank-00000.safetensors", "0001/model.safetensors", "0001/ema.safetensors"]
    assert [file.name for file in card.every_file] == names
    for file in card.every_file:
        data = store.read(f"{step_prefix(RUN, 10)}/{file.name}")
        assert (file.num_bytes, file.sha256) == (len(data), sha256_hex(data))
    assert (card.step, card.position, card.updates, card.attempt, card.world_size) == (10, 100, 10, "0001", 1)
    assert check_complete(store, card) is None
    assert not list(store.root.rglob(".tmp-*"))


def test_without_a_moving_average_there_is_no_file_of_it(store: Noting) -> None:
    save_steps(new_saving(store), 10, kinds=("weight", "momentum_buffer"))
    card = read_checkpoint_card(store, RUN, 10)
    assert card.ema_weights is None
    assert store.head(f"{step_prefix(RUN, 10)}/0001/ema.safetensors") is None


def test_a_checkpoint_comes_back_to_the_last_bit(store: Noting) -> None:
    saving = new_saving(store)
    save_steps(saving, 0, 10, 200)
    state = State(seed=5)
    card = resume(new_saving(store), SingleProcess(), state)
    assert card is not None
    assert (card.step, card.position) == (200, 2000)
    assert same(state, trained(200))


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 2), (4, 3), (5, 8)])
@pytest.mark.parametrize("cuts", [("flat", "flat"), ("flat", "each"), ("each", "flat")])
def test_any_number_of_ranks_and_any_cut_resume_any_other(
    store: Noting, before: int, after: int, cuts: tuple[Cut, Cut]
) -> None:
    saving = new_saving(store)

    def save(collective: Collective) -> None:
        writer = thread_writer(collective, saving)
        writer.save(7, 70, State(collective.world, cuts[0]).train(7))
        assert writer.wait()

    def back(collective: Collective) -> tuple[State, int]:
        state = State(collective.world, cuts[1], seed=3)
        card = resume(later, collective, state)
        assert card is not None
        return state, card.step

    assert run_threads(save, before) == [None] * before
    later = new_saving(store)
    for rank, (state, step) in enumerate(run_threads(back, after)):
        assert step == 7
        assert same(state, State(World(rank, after), cuts[1]).train(7))
    assert same(restored(store, read_checkpoint_card(store, RUN, 7)), trained(7, kinds=tuple(sorted(KINDS))))


def test_a_rank_opens_only_what_it_needs(store: Noting, monkeypatch: pytest.MonkeyPatch) -> None:
    saving = new_saving(store)

    def save(collective: Collective) -> None:
        writer = thread_writer(collective, saving)
        writer.save(7, 70, State(collective.world).train(7))
        assert writer.wait()

    opened: dict[int, set[str]] = {}

    def back(collective: Collective) -> None:
        class Listening(LocalStore):
            def local_path(self, key: str) -> Path | None:
                opened.setdefault(collective.world.rank, set()).add(key.rpartition("/")[2])
                return super().local_path(key)

        resume(replace(saving, workspace=Listening(store.root)), collective, State(collective.world))

    run_threads(save, 4)
    assert run_threads(back, 4) == [None] * 4
    own = {rank: {f"rank-0000{rank}.safetensors"} for rank in range(4)}
    own[0] |= {"model.safetensors"}
    own[1] |= {"ema.safetensors"}
    assert opened == own


def test_without_a_checkpoint_there_is_nothing_to_resume(store: Noting) -> None:
    state = State()
    assert resume(new_saving(store), SingleProcess(), state) is None
    assert same(state, State())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "other"}, "fingerprint: recipe -> other"),
        ({"dataset_digest": "other"}, "dataset_digest: data -> other"),
    ],
)
def test_another_recipe_or_dataset_is_refused_by_field(store: Noting, change: dict[str, str], said: str) -> None:
    save_steps(new_saving(store), 10)
    state = State(seed=5)
    with pytest.raises(MismatchError, match=f"step 10 of run r cannot be resumed: {said}$"):
        resume(new_saving(store, **change), SingleProcess(), state)
    assert list_steps(store, RUN) == [10], "a refused checkpoint is not a damaged one"
    assert same(state, State(seed=5))


def test_another_model_is_refused_by_parameter(store: Noting) -> None:
    save_steps(new_saving(store), 10)
    other = {name: shape for name, shape in SHAPES.items() if name != "scale"} | {"head.w": (10, 7), "new": (1,)}
    with pytest.raises(MismatchError) as caught:
        resume(new_saving(store), SingleProcess(), State(model=other))
    for said in ("shape of head.w: (3, 7) -> (10, 7)", "shape of new: absent -> (1,)", "shape of scale: () -> absent"):
        assert said in str(caught.value)
    assert list_steps(store, RUN) == [10]


def test_another_optimizer_is_refused_by_what_it_lacks(store: Noting) -> None:
    save_steps(new_saving(store), 10)
    with pytest.raises(MismatchError, match=r"r@10 holds no momentum_buffer of embed\.w"):
        resume(new_saving(store), SingleProcess(), State(kinds=("weight", "momentum_buffer")))


def test_how_it_was_written_does_not_matter(store: Noting) -> None:
    save_steps(new_saving(store), 10)
    state = State()
    assert resume(new_saving(store, zero_stage=3, dtype="fp32"), SingleProcess(), state)
    assert same(state, trained(10))


def test_a_card_of_the_first_schema_is_refused_and_stays(store: Noting) -> None:
    save_steps(new_saving(store), 10)
    key = checkpoint_card_key(RUN, 10)
    store.put(key, b'{"schema_version": 1, "run": "r", "step": 10, "files": []}')
    with pytest.raises(MismatchError, match="has schema_version 1, this vitpipe resumes 2"):
        resume(new_saving(store), SingleProcess(), State())
    assert store.head(key) is not None


def test_a_superseded_attempt_commits_nothing(store: Noting) -> None:
    older, newer = new_saving(store), new_saving(store)
    writer = alone_writer(older)
    writer.save(10, 100, trained(10))
    with pytest.raises(SupersededError, match="attempt 0001 of run r was superseded by attempt 0002"):
        writer.wait()
    with pytest.raises(SupersededError):
        writer.save(20, 200, trained(20))
    assert list_steps(store, RUN) == []
    save_steps(newer, 10)
    assert list_steps(store, RUN) == [10]


def test_the_card_that_is_there_stands(store: Noting) -> None:
    save_steps(new_saving(store), 10)
    before = store.read(checkpoint_card_key(RUN, 10))
    writer = save_steps(new_saving(store), 10, seed=1)
    assert writer.take_alarms() == ["step 10 was committed by attempt 0001 already; that one stands"]
    assert store.read(checkpoint_card_key(RUN, 10)) == before
    assert not [info.key for info in store.list() if "/0002/" in info.key]
    assert same(restored(store, read_checkpoint_card(store, RUN, 10)), trained(10, kinds=tuple(sorted(KINDS))))


def test_the_same_attempt_may_save_a_step_again(store: Noting) -> None:
    saving = new_saving(store)
    save_steps(saving, 10)
    assert save_steps(saving, 10).take_alarms() == []


def fork(store: Noting, **more: Any) -> tuple[CheckpointCard | None, State]:
    state = State(seed=8)
    return resume(new_saving(store, "child", parent="r@10", **more), SingleProcess(), state), state


def test_a_fork_begins_where_its_parent_was(store: Noting) -> None:
    save_steps(new_saving(store), 10, 20)
    card, state = fork(store, fingerprint="another recipe")
    assert card is not None
    assert (card.run, card.step, card.position) == (RUN, 10, 100)
    assert same(state, trained(10))
    assert held_steps(store, RUN) == {10}
    saving = new_saving(store, "child", parent="r@10", fingerprint="another recipe")
    writer = alone_writer(saving)
    writer.save_and_wait(10, 100, state)
    writer.save_and_wait(13, 130, state.train(3))
    own, again = fork(store, fingerprint="another recipe")
    assert own is not None
    assert (own.run, own.step, own.parent) == ("child", 13, "r@10")
    assert same(again, trained(13))


def test_an_average_that_the_parent_does_not_keep_begins_at_its_weights(store: Noting) -> None:
    plain = tuple(kind for kind in KINDS if kind != EMA)
    save_steps(new_saving(store), 10, kinds=plain)
    card, state = fork(store)
    assert card is not None
    values = {(part.kind, part.name): part.values for part in state.parts}
    assert all(torch.equal(values[EMA, name], values[WEIGHT, name]) for name in SHAPES)
    rest = replace(State(seed=8, kinds=plain), updates=10)
    assert same(replace_parts(rest, state), trained(10, kinds=plain))


def test_an_own_checkpoint_without_the_average_is_refused(store: Noting) -> None:
    save_steps(new_saving(store), 10, kinds=(WEIGHT, "exp_avg", "exp_avg_sq"))
    with pytest.raises(MismatchError, match=r"r@10 holds no ema of .*it has: exp_avg, exp_avg_sq, weight"):
        resume(new_saving(store), SingleProcess(), State(seed=8))


def test_an_average_that_the_fork_does_not_keep_is_left_behind(store: Noting) -> None:
    plain = tuple(kind for kind in KINDS if kind != EMA)
    save_steps(new_saving(store), 10)
    state = State(seed=8, kinds=plain)
    assert resume(new_saving(store, "child", parent="r@10"), SingleProcess(), state)
    assert same(state, trained(10, kinds=plain))


def replace_parts(into: State, other: State) -> State:
    """*into*, with the values that *other* has of its kinds."""
    into.parts = [part for part in other.parts if part.kind in into.kinds]
    return into


def test_a_fork_needs_a_parent_that_is_whole_and_of_its_data(store: Noting) -> None:
    with pytest.raises(InputError, match=r"no checkpoint r@10 in .* - its steps: none"):
        fork(store)
    save_steps(new_saving(store), 10, 20)
    with pytest.raises(MismatchError, match="dataset_digest: data -> other"):
        fork(store, dataset_digest="other")
    store.delete(f"{step_prefix(RUN, 10)}/0001/model.safetensors")
    with pytest.raises(DamageError, match=r"r@10, which run child is forked from, is damaged: 0001/model.safetensors"):
        fork(store)
    assert list_steps(store, RUN) == [10, 20], "another run's checkpoint is not ours to set aside"


@pytest.mark.parametrize("text", ["r", "r@", "@10", "r@ten", "r@-1", "r@1.5", ""])
def test_what_names_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="names no checkpoint"):
        parse_reference(text)


def test_a_reader_tells_what_it_does_not_hold(store: Noting) -> None:
    save_steps(new_saving(store), 10)
    with CheckpointReader(store, read_checkpoint_card(store, RUN, 10)) as reader:
        whole = dict(reader.shapes())
        assert whole == SHAPES
        assert reader.updates == 10
        assert torch.equal(reader.read("weight", "head.b", 1, 3), trained(10).parts[1].values[1:3])
        assert reader.read("weight", "scale", 0, 1).dtype == torch.float32
        for kind, name in (("adam", "head.b"), ("weight", "tail")):
            with pytest.raises(MismatchError, match=f"holds no {kind} of {name}"):
                reader.read(kind, name, 0, 1)
        with pytest.raises(MismatchError, match=r"weight of head.b has no elements 1\.\.4"):
            reader.read("weight", "head.b", 1, 4)


def test_a_changed_card_is_damaged(store: Noting) -> None:
    save_steps(new_saving(store), 10)
    key = checkpoint_card_key(RUN, 10)
    data = store.read(key)
    for old, new in ((b'"position": 100', b'"position": 101'), (b'"updates": 10', b'"updates": 11')):
        assert old in data
        with pytest.raises(DamageError, match="it is not the digest of the other fields"):
            parse_record(CheckpointCard, data.replace(old, new), key)
    assert parse_record(CheckpointCard, data, key) == list_checkpoint_cards(store, RUN)[0]


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


def test_only_the_newest_attempt_sets_a_checkpoint_aside(store: Noting) -> None:
    save_steps(new_saving(store), 10)
    older = new_saving(store)
    new_saving(store)
    store.delete(f"{step_prefix(RUN, 10)}/0001/model.safetensors")
    with pytest.raises(SupersededError):
        resume_newest(older, SingleProcess(), State())
    assert list_steps(store, RUN) == [10]
