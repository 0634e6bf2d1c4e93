"""The background: training goes on with a copy; a store that fails is an alarm, up to a number of times in a row."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.base.store.local import LocalStore
from pipeline.base.world import Collective
from pipeline.checkpoints import writer as writer_module
from pipeline.checkpoints.resume import resume
from pipeline.checkpoints.save import SaveContext
from pipeline.checkpoints.state import Snapshot
from pipeline.records.run import checkpoint_card_key, list_steps, read_checkpoint_card, step_prefix
from tests.support.states import (
    KINDS,
    RUN,
    State,
    alone_assembled,
    alone_writer,
    new_saving,
    packed,
    restored,
    run_threads,
    same,
    thread_writer,
    trained,
)


class Moody(LocalStore):
    """Does what it is told before it takes an object."""

    before_put: Callable[[str], None] = staticmethod(lambda key: None)

    @contextmanager
    def incoming(self, key: str) -> Iterator[Path]:
        """See Store."""
        with super().incoming(key) as path:
            yield path
            self.before_put(key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store."""
        self.before_put(key)
        return super().put_if_absent(key, data)


@pytest.fixture
def store(tmp_path: Path) -> Moody:
    """An empty workspace."""
    return Moody(tmp_path / "workspace")


def refusing(part: str) -> Callable[[str], None]:
    """A store with no room for keys with *part* in them."""

    def refuse(key: str) -> None:
        if part in key:
            raise FailedError(f"file:///w: {OSError(errno.ENOSPC, 'No space left on device').strerror}", "make room")

    return refuse


def test_training_goes_on_while_it_is_written(store: Moody) -> None:
    saving, state = new_saving(store), trained(10)
    reached, may_go_on = threading.Event(), threading.Event()

    def hold(key: str) -> None:
        if "rank-" in key:
            reached.set()
            assert may_go_on.wait(30)

    store.before_put = hold  # type: ignore[method-assign]
    writer = alone_writer(saving)
    writer.save(10, 100, state)
    assert reached.wait(30)
    state.train(5)
    assert list_steps(store, RUN) == []
    may_go_on.set()
    assert writer.wait()
    card = read_checkpoint_card(store, RUN, 10)
    assert same(restored(store, card), trained(10, kinds=tuple(sorted(KINDS))))
    data = store.read(f"{step_prefix(RUN, 10)}/{card.weights.name}")
    whole = alone_assembled(trained(10), "weight")
    assert whole is not None
    assert data == packed(whole), "the model file too is of the moment of the save"
    assert writer.write_seconds > 0


def test_a_save_waits_for_the_one_before_and_says_so(store: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_QUIET_SECONDS", 0.01)
    saving, state, may_go_on = new_saving(store), trained(10), threading.Event()

    def hold(key: str) -> None:
        if "step-00000010" in key:
            assert may_go_on.wait(30)

    class Telling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            may_go_on.set()

    store.before_put = hold  # type: ignore[method-assign]
    writer, handler = alone_writer(saving), Telling()
    writer_module._log.addHandler(handler)
    try:
        writer.save(10, 100, state)
        assert writer.save(20, 200, state.train(10)) >= 0.01
    finally:
        writer_module._log.removeHandler(handler)
    monkeypatch.setattr(writer_module, "_QUIET_SECONDS", 30.0)
    assert writer.wait()
    assert list_steps(store, RUN) == [10, 20]
    assert writer.take_alarms() == ["checkpoint of step 10 is still being written, training waits for it"]
    assert writer.take_alarms() == []


def test_a_store_that_hangs_is_told_of_at_once_and_is_the_end_after_a_while(store: Moody) -> None:
    may_go_on, told = threading.Event(), list[str]()

    def hang(_key: str) -> None:
        assert may_go_on.wait(60)

    writer = alone_writer(new_saving(store), patience_seconds=0.05, on_message=told.append)
    store.before_put = hang  # type: ignore[method-assign]
    try:
        writer.save(10, 100, trained(10))
        with pytest.raises(FailedError, match=r"checkpoint of step 10 was not written, nor refused, in 0.05 s"):
            writer.save(20, 200, trained(20))
        assert told == ["checkpoint of step 10 is still being written, training waits for it"]
        assert list_steps(store, RUN) == []
    finally:
        may_go_on.set()


def test_the_buffer_is_used_again() -> None:
    snapshot, state = Snapshot(), State()
    snapshot.take(state)
    place = snapshot.buffer.data_ptr()
    first = snapshot.buffer.clone()
    snapshot.take(state.train(3))
    assert snapshot.buffer.data_ptr() == place
    assert not torch.equal(snapshot.buffer, first)
    assert snapshot.updates == 3
    views = {fragment.values.untyped_storage().data_ptr() for fragment in snapshot.fragments()}
    assert views == {place}


def test_what_is_not_float32_is_no_state() -> None:
    state = State()
    object.__setattr__(state.parts[0], "values", state.parts[0].values.bfloat16())
    with pytest.raises(ValueError, match="bfloat16"):
        Snapshot().take(state)


@pytest.mark.parametrize(
    "part", ["rank-00000", "rank-00001", "model.safetensors", "ema.safetensors", "checkpoint.json"]
)
def test_a_store_that_fails_is_an_alarm_until_it_failed_too_often(store: Moody, part: str) -> None:
    saving = new_saving(store)
    save_ranks(saving, 10)
    store.before_put = refusing(part)  # type: ignore[method-assign]

    def work(collective: Collective) -> tuple[list[str], str]:
        writer, state = thread_writer(collective, saving), State(collective.world).train(10)
        alarms = []
        for step in (20, 30):
            writer.save(step, step * 10, state.train(10))
            assert not writer.wait()
            alarms += writer.take_alarms()
        writer.save(40, 400, state.train(10))
        with pytest.raises(FailedError) as caught:
            writer.wait()
        with pytest.raises(FailedError, match="3 checkpoints in a row"):
            writer.check()
        return alarms + writer.take_alarms(), str(caught.value)

    told = run_threads(work, 2)
    assert told[0] == told[1]
    alarms, ending = told[0]
    assert len(alarms) == 3, alarms
    for alarm, step in zip(alarms, (20, 30, 40), strict=True):
        assert alarm.startswith(f"checkpoint of step {step} was not saved, training goes on: ")
        assert "No space left on device" in alarm
    assert ending.startswith("3 checkpoints in a row were not saved; the last one: ")
    assert list_steps(store, RUN) == [10]
    if part != "checkpoint.json":  # which may be there although the store said no
        assert not [info.key for info in store.list("runs/r/checkpoints/step-0000002")], "no room is taken by it"


def save_ranks(saving: SaveContext, step: int) -> None:
    def work(collective: Collective) -> None:
        writer = thread_writer(collective, saving)
        writer.save(step, step * 10, State(collective.world).train(step))
        assert writer.wait()

    assert run_threads(work, 2) == [None, None]


def test_a_save_that_succeeds_ends_the_row(store: Moody) -> None:
    writer = alone_writer(new_saving(store), max_failed_saves=2)
    state = State()
    for step in range(1, 9):
        store.before_put = refusing("rank-" if step % 2 else "never")  # type: ignore[method-assign]
        writer.save(step, step * 10, state.train(1))
        assert writer.wait() == (step % 2 == 0)
    assert list_steps(store, RUN) == [2, 4, 6, 8]
    assert len(writer.take_alarms()) == 4


def test_the_last_one_is_tried_until_it_is_there(store: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_FIRST_PAUSE_SECONDS", 0.001)
    left = ["a", "b"]

    def twice(key: str) -> None:
        if "rank-" in key and left:
            left.pop()
            raise StoreAccessError("the store is away")

    store.before_put = twice  # type: ignore[method-assign]
    writer = alone_writer(new_saving(store))
    writer.save_and_wait(10, 100, trained(10))
    assert list_steps(store, RUN) == [10]
    assert len(writer.take_alarms()) == 2
    store.before_put = refusing("rank-")  # type: ignore[method-assign]
    with pytest.raises(FailedError, match="3 checkpoints in a row"):
        writer.save_and_wait(20, 200, trained(20))


def test_a_card_of_another_step_in_its_place_is_no_commit(store: Moody) -> None:
    """What was written stays: nobody knows what it belongs to until the card is gone."""
    writer, state = alone_writer(new_saving(store)), State()
    writer.save_and_wait(10, 100, state.train(10))
    store.put(checkpoint_card_key(RUN, 20), store.read(checkpoint_card_key(RUN, 10)))
    writer.save(20, 200, state.train(10))
    assert not writer.wait()
    (alarm,) = writer.take_alarms()
    assert "step-00000020/checkpoint.json is the card of r@10, not of r@20" in alarm
    assert store.head(f"{step_prefix(RUN, 20)}/0001/model.safetensors") is not None


def test_an_answer_that_got_lost_costs_nothing(store: Moody) -> None:
    """The card was created, and the store said it was not: its files stay, and it counts."""
    saving = new_saving(store)

    class Lossy(Moody):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            super().put_if_absent(key, data)
            raise StoreAccessError("no answer")

    lossy = Lossy(store.root)
    writer = alone_writer(new_saving(lossy, attempt=saving.attempt))
    writer.save(10, 100, trained(10))
    assert not writer.wait()
    state = State()
    card = resume(new_saving(store), writer.collective, state)
    assert card is not None
    assert same(state, trained(10))


def test_a_state_with_a_hole_is_not_committed(store: Moody) -> None:
    writer, state = alone_writer(new_saving(store)), trained(10)
    state.parts = [part for part in state.parts if (part.kind, part.name) != ("exp_avg", "head.w")]
    writer.save(10, 100, state)
    assert not writer.wait()
    assert "exp_avg of head.w: elements 0..21 are in no file" in writer.take_alarms()[0]
    assert list_steps(store, RUN) == []


def test_ranks_at_different_steps_commit_nothing(store: Moody) -> None:
    saving = new_saving(store)

    def work(collective: Collective) -> list[str]:
        writer, step = thread_writer(collective, saving), 10 + collective.world.rank
        writer.save(step, step * 10, State(collective.world).train(step))
        assert not writer.wait()
        return writer.take_alarms()

    alarms = run_threads(work, 2)
    assert "the ranks are at different steps" in alarms[0][0]
    assert list_steps(store, RUN) == []


def test_a_file_that_vanishes_before_the_card_is_told(store: Moody) -> None:
    def steal(key: str) -> None:
        if key.endswith("ema.safetensors"):
            store.delete(key.replace("ema.safetensors", "rank-00000.safetensors"))

    store.before_put = steal  # type: ignore[method-assign]
    writer = alone_writer(new_saving(store))
    writer.save(10, 100, trained(10))
    assert not writer.wait()
    assert writer.take_alarms()[0].endswith("0001/rank-00000.safetensors is missing")
    assert store.head(checkpoint_card_key(RUN, 10)) is None


def test_what_assemble_raises_ends_it(store: Moody) -> None:
    writer = alone_writer(new_saving(store))
    writer._assemble = lambda source, kind: {}[kind]  # type: ignore[assignment]
    writer.save(10, 100, trained(10))
    with pytest.raises(KeyError):
        writer.wait()
    assert list_steps(store, RUN) == []
