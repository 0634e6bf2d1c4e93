"""Every file of a checkpoint flipped, dropped, cut or swapped with another step's: named, and the one before is taken.

Two ranks wrote it; two ranks resume it, each looking at its part, and one process resumes it too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, MismatchError, StoreAccessError
from pipeline.base.store import Store, open_store
from pipeline.base.store.local import LocalStore
from pipeline.base.world import Collective, SingleProcess
from pipeline.checkpoints.resume import resume, resume_newest
from pipeline.checkpoints.save import SaveContext
from pipeline.checkpoints.shard_file import LENGTH_BYTES, rank_file
from pipeline.records.run import (
    CheckpointCard,
    StoredFile,
    checkpoint_card_key,
    list_steps,
    read_checkpoint_card,
    step_prefix,
)
from tests.support.faults import draw
from tests.support.states import RUN, State, new_saving, run_threads, same, save_steps, thread_writer, trained

GOOD, BAD = 10, 20
STATES = [f"0001/{rank_file(rank)}" for rank in range(2)]
FILES = [*STATES, "0001/model.safetensors", "0001/ema.safetensors", "checkpoint.json"]
Harm = Callable[[Store, str], None]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """Two checkpoints of two ranks."""
    store = LocalStore(tmp_path / "workspace")
    saving = new_saving(store)

    def save(collective: Collective) -> None:
        writer, state = thread_writer(collective, saving), State(collective.world)
        for step in (GOOD, BAD):
            writer.save_and_wait(step, step * 10, state.train(step - state.updates))

    assert run_threads(save, 2) == [None, None]
    return store


def at(step: int, name: str) -> str:
    return f"{step_prefix(RUN, step)}/{name}"


def flip_header(store: Store, name: str) -> None:
    """One bit, chosen by the seed, of the JSON at the beginning."""
    flip_between(store, name, 0, LENGTH_BYTES + header_bytes(store, name))


def flip_body(store: Store, name: str) -> None:
    """One bit behind that."""
    data = store.read(at(BAD, name))
    flip_between(store, name, LENGTH_BYTES + header_bytes(store, name), len(data))


def flip_last(store: Store, name: str) -> None:
    """The very last bit."""
    data = store.read(at(BAD, name))
    flip_between(store, name, len(data) - 1, len(data))


def header_bytes(store: Store, name: str) -> int:
    return int.from_bytes(store.read(at(BAD, name))[:LENGTH_BYTES], "little")


def flip_between(store: Store, name: str, low: int, high: int) -> None:
    data = bytearray(store.read(at(BAD, name)))
    data[draw(f"flip {name}").randrange(low, high)] ^= 1 << draw(f"bit {name}").randrange(8)
    store.put(at(BAD, name), bytes(data))


def drop(store: Store, name: str) -> None:
    """Remove it."""
    store.delete(at(BAD, name))


def cut(store: Store, name: str) -> None:
    """Leave the first half."""
    data = store.read(at(BAD, name))
    store.put(at(BAD, name), data[: len(data) // 2])


def empty(store: Store, name: str) -> None:
    """Leave nothing."""
    store.put(at(BAD, name), b"")


def swap(store: Store, name: str) -> None:
    """The same file of the other step."""
    ours, theirs = store.read(at(BAD, name)), store.read(at(GOOD, name))
    assert len(ours) == len(theirs)
    store.put(at(BAD, name), theirs)


def swap_ranks(store: Store, name: str) -> None:
    """The same step's file of the other rank."""
    other = STATES[1 - STATES.index(name)]
    ours, theirs = store.read(at(BAD, name)), store.read(at(BAD, other))
    store.put(at(BAD, name), theirs)
    store.put(at(BAD, other), ours)


def lengthen(store: Store, name: str) -> None:
    """Something behind its end."""
    store.put(at(BAD, name), store.read(at(BAD, name)) + b"\0" * 8)


def pickle_instead(store: Store, name: str) -> None:
    """A pickle of the same length, which would tell if anybody ran it."""
    size = len(store.read(at(BAD, name)))
    target = (store.local_path("pickle-was-run") or Path()).as_posix().encode()
    payload = b"cposix\nmkdir\n(V" + target + b"\ntR."
    store.put(at(BAD, name), payload + b"\0" * (size - len(payload)))


HARMS: list[tuple[Harm, str]] = [
    (harm, name) for name in FILES for harm in (drop, cut, empty, lengthen) if name.endswith(".safetensors")
]
HARMS += [(harm, name) for name in FILES[:-1] for harm in (flip_header, flip_body, flip_last, swap, pickle_instead)]
HARMS += [(swap_ranks, STATES[0]), (cut, FILES[-1]), (empty, FILES[-1]), (swap, FILES[-1])]


def harm_id(value: object) -> str:
    return getattr(value, "__name__", str(value))


def back(saving: SaveContext, size: int) -> tuple[int, list[State]]:
    """Resume on *size* ranks: (step, their states). They all take the same one."""

    def one(collective: Collective) -> tuple[CheckpointCard | None, State]:
        state = State(collective.world, seed=6)
        return resume_newest(saving, collective, state), state

    found = run_threads(one, size)
    for outcome in found:
        if isinstance(outcome, Exception):
            raise outcome
    steps = {card.step for card, _ in found}
    assert len(steps) == 1
    return steps.pop(), [state for _, state in found]


@pytest.mark.parametrize(("harm", "name"), HARMS, ids=harm_id)
def test_a_damaged_file_is_named_and_the_one_before_taken(
    store: LocalStore, harm: Harm, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    evidence = store.read(checkpoint_card_key(RUN, BAD))
    harm(store, name)
    size = 2 if FILES.index(name) % 2 else 1
    with caplog.at_level(logging.WARNING):
        step, states = back(new_saving(store), size)
    assert step == GOOD
    for state in states:
        assert same(state, State(state.world).train(GOOD))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1, told
    assert f"checkpoint of step {BAD} of run {RUN} is left out" in told[0]
    assert name in told[0]
    assert list_steps(store, RUN) == [GOOD], "the step can be saved again"
    aside = json.loads(store.read(at(BAD, "damaged-0002.json")))
    assert aside["found_by"] == "0002"
    assert name in aside["problem"]
    if name != FILES[-1]:
        assert aside["card"].encode() == evidence
    assert not (store.root / "pickle-was-run").exists()
    save_steps(new_saving(store), BAD)
    again, states = back(new_saving(store), 1)
    assert again == BAD
    assert same(states[0], trained(BAD))


def test_a_flip_of_any_byte_of_the_card_is_found_and_named(store: LocalStore, caplog: pytest.LogCaptureFixture) -> None:
    """Each byte in turn would take long: every field is hit by some seed, and the digest is over all of them."""
    key, rng = checkpoint_card_key(RUN, BAD), draw("card")
    whole = store.read(key)
    for _ in range(40):
        data = bytearray(whole)
        place, bit = rng.randrange(len(data)), rng.randrange(8)
        data[place] ^= 1 << bit
        store.put(key, bytes(data))
        caplog.clear()
        step, _ = back(new_saving(store), 1)
        same_meaning = bytes(data[place : place + 1]).isspace() and whole[place : place + 1].isspace()
        assert step == (BAD if same_meaning else GOOD), (place, bit)
        told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert same_meaning or ["step-00000020/checkpoint.json" in line for line in told] == [True], told


def test_when_all_are_damaged_it_starts_anew(store: LocalStore) -> None:
    for step in (GOOD, BAD):
        store.delete(at(step, STATES[1]))
    state = State()
    assert resume(new_saving(store), SingleProcess(), state) is None
    assert same(state, State())
    assert list_steps(store, RUN) == []


class Away(LocalStore):
    """Cannot be reached where the second rank's file is."""

    def read_range(self, key: str, start: int, length: int, etag: str = "") -> bytes:
        """See Store."""
        if key.endswith(STATES[1]):
            raise StoreAccessError("the store is away")
        return super().read_range(key, start, length, etag)


@pytest.mark.parametrize("size", [1, 2])
def test_a_store_that_does_not_answer_is_no_damage(store: LocalStore, size: int) -> None:
    saving = new_saving(store)
    with pytest.raises(StoreAccessError, match="the store is away"):
        back(replace(saving, workspace=Away(store.root)), size)
    assert list_steps(store, RUN) == [GOOD, BAD]


@pytest.mark.parametrize("version", [1, 3])
def test_a_checkpoint_of_another_release_is_refused_and_stays(store: LocalStore, version: int) -> None:
    tree = json.loads(store.read(checkpoint_card_key(RUN, BAD)))
    tree |= {"schema_version": version, "new": "field"}
    store.put(checkpoint_card_key(RUN, BAD), json.dumps(tree).encode())
    with pytest.raises(MismatchError, match=f"has schema_version {version}, this vitpipe resumes 2"):
        back(new_saving(store), 2)
    assert list_steps(store, RUN) == [GOOD, BAD]


def reseal(store: Store, **change: object) -> None:
    """Another card for the newest step, with a digest that is right: as somebody would make it on purpose."""
    card = read_checkpoint_card(store, RUN, BAD)
    fields = card.model_dump(exclude={"digest"}) | change
    store.put(checkpoint_card_key(RUN, BAD), CheckpointCard.model_validate(fields).to_json())


def forge(store: Store, name: str, data: bytes) -> None:
    """Put *data* as file *name*, with a card that names its digest."""
    store.put(at(BAD, name), data)
    card = read_checkpoint_card(store, RUN, BAD)
    forged = StoredFile(name=name, num_bytes=len(data), sha256=sha256_hex(data))
    reseal(store, files=[forged if file.name == name else file for file in card.files])


def test_mixed_steps_are_refused_even_when_every_digest_is_right(store: LocalStore) -> None:
    forge(store, STATES[1], store.read(at(GOOD, STATES[1])))
    with pytest.raises(DamageError, match=r"rank-00001.safetensors is of another checkpoint: step: 20 -> 10; updates"):
        fork_from(store)


def test_a_missing_rank_is_refused_even_when_the_card_agrees(store: LocalStore) -> None:
    reseal(store, files=read_checkpoint_card(store, RUN, BAD).files[:1])
    with pytest.raises(DamageError, match="not a file of each of 2 ranks"):
        fork_from(store)
    reseal(store, world_size=1)
    with pytest.raises(DamageError, match=r"rank-00000.safetensors is of another checkpoint: world_size: 1 -> 2"):
        fork_from(store)


@pytest.mark.parametrize(("shift", "said"), [(-1, "are in both"), (1, "are in no file")])
def test_ranges_that_overlap_or_leave_a_gap_are_refused(store: LocalStore, shift: int, said: str) -> None:
    data = store.read(at(BAD, STATES[1]))
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    tree = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])
    name = next(name for name in tree if name.startswith("weight:") and not name.endswith(":0"))
    kind, parameter, start = name.split(":")
    tree = {key if key != name else f"{kind}:{parameter}:{int(start) + shift}": row for key, row in tree.items()}
    text = json.dumps(tree).encode()
    forge(store, STATES[1], len(text).to_bytes(LENGTH_BYTES, "little") + text + data[LENGTH_BYTES + length :])
    with pytest.raises(DamageError, match=f"weight of {parameter}: elements .* {said}"):
        fork_from(store)


def test_tensors_that_overlap_in_the_file_are_refused(store: LocalStore) -> None:
    data = store.read(at(BAD, STATES[0]))
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    tree = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])
    names = sorted((name for name in tree if ":" in name), key=lambda name: tree[name]["data_offsets"])
    tree[names[1]]["data_offsets"] = tree[names[0]]["data_offsets"]
    tree[names[1]]["shape"] = tree[names[0]]["shape"]
    text = json.dumps(tree).encode()
    forge(store, STATES[0], len(text).to_bytes(LENGTH_BYTES, "little") + text + data[LENGTH_BYTES + length :])
    with pytest.raises(DamageError, match=r"rank-00000.safetensors: its header is damaged \(tensor"):
        fork_from(store)


def fork_from(store: Store) -> None:
    """Resume exactly the newest step: what is wrong with it is raised."""
    resume(new_saving(store, "child", parent=f"{RUN}@{BAD}"), SingleProcess(), State())


def test_what_another_process_damages_in_the_way_is_fetched_again(tmp_path: Path, s3_workspace: str) -> None:
    """On a bucket: the copy that came was damaged, the object is not."""
    remote = open_store(s3_workspace)
    save_steps(new_saving(remote), GOOD, BAD)
    damaged: list[str] = []
    fetch = remote.fetch

    def first_time_damaged(key: str, path: Path) -> None:
        fetch(key, path)
        if not damaged:
            damaged.append(key)
            path.write_bytes(path.read_bytes()[:-1] + b"\x7f")

    remote.fetch = first_time_damaged  # type: ignore[method-assign]
    state = State()
    card = resume(new_saving(remote), SingleProcess(), state)
    assert card is not None
    assert card.step == BAD
    assert damaged
    assert same(state, trained(BAD))
    flip_body(remote, STATES[0])
    assert back(new_saving(open_store(s3_workspace)), 2)[0] == GOOD
