"""A state that is trained without a network: for checkpoints, in one process, in threads, or in real ranks.

Each element of each tensor is updated from its own value, its index and the number of the update, so that the state
after n updates is the same bits however it is cut among ranks.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import save as pack_tensors
from torch import Tensor

from pipeline.base.store import Store, open_store
from pipeline.base.world import Collective, SingleProcess, World
from pipeline.checkpoints.card import take_attempt
from pipeline.checkpoints.reader import CheckpointReader
from pipeline.checkpoints.save import SaveContext
from pipeline.checkpoints.state import EMA, WEIGHT, Fragment, FragmentReader, FragmentSource
from pipeline.checkpoints.writer import CheckpointWriter
from pipeline.records.run import CheckpointCard
from pipeline.train.distributed import ProcessGroup, gather_full_state
from tests.support.ranks import free_port

Cut = Literal["flat", "each"]
RUN = "r"
SHAPES: dict[str, tuple[int, ...]] = {"embed.w": (7, 5), "head.b": (3,), "head.w": (3, 7), "scale": ()}
KINDS = (WEIGHT, "exp_avg", "exp_avg_sq", EMA)


@dataclass
class State:
    """A Restorable. *cut*: how ranks share it, "flat": one row of all parameters (ZeRO 1, 2); "each" of them (3, 0)."""

    world: World = field(default_factory=World)
    cut: Cut = "flat"
    model: dict[str, tuple[int, ...]] = field(default_factory=lambda: SHAPES)
    kinds: tuple[str, ...] = KINDS
    seed: int = 0
    updates: int = 0

    def __post_init__(self) -> None:
        self.parts = [
            Fragment(kind, name, start, self._first(kind, name, start, stop))
            for kind in self.kinds
            for name, start, stop in self._spans()
        ]

    def train(self, updates: int) -> State:
        """Some more updates; itself."""
        for _ in range(updates):
            self.updates += 1
            for part in self.parts:
                where = torch.arange(part.start, part.stop, dtype=torch.float32)
                part.values.mul_(0.9).add_(torch.sin(where + self.updates))
        return self

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See FragmentSource."""
        return self.model

    def fragments(self) -> list[Fragment]:
        """See FragmentSource."""
        return self.parts

    def load(self, reader: FragmentReader) -> None:
        """See Restorable."""
        assert reader.shapes() == self.model
        for part in self.parts:
            part.values.copy_(reader.read(part.kind, part.name, part.start, part.stop))
        self.updates = reader.updates

    def bits(self) -> dict[tuple[str, str, int], bytes]:
        """Every value, to the last bit."""
        return {(part.kind, part.name, part.start): part.values.numpy().tobytes() for part in self.parts}

    def _first(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        size = math.prod(self.model[name])
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {kind} {name}".encode()))
        return torch.rand(size, generator=generator)[start:stop].clone()

    def _spans(self) -> list[tuple[str, int, int]]:
        sizes = {name: math.prod(shape) for name, shape in self.model.items()}
        if self.cut == "each":
            return [(name, *share) for name, size in sizes.items() if (share := _share(self.world, size))]
        low, high = _share(self.world, sum(sizes.values())) or (0, 0)
        spans, offset = [], 0
        for name, size in sizes.items():
            start, stop = max(low - offset, 0), min(high - offset, size)
            spans += [(name, start, stop)] if start < stop else []
            offset += size
        return spans


def _share(world: World, size: int) -> tuple[int, int] | None:
    """The rank's part of *size* elements, as ZeRO 3 cuts; None: nothing."""
    each = -(-size // world.size)
    low, high = min(size, world.rank * each), min(size, (world.rank + 1) * each)
    return (low, high) if low < high else None


def trained(updates: int, **more: Any) -> State:
    """The whole state after *updates*, as one process has it."""
    return State(**more).train(updates)


def new_saving(store: Store, run: str = RUN, attempt: str = "", **more: Any) -> SaveContext:
    """A new attempt of *run*."""
    fixed = {"zero_stage": 2, "dtype": "bf16", "fingerprint": "recipe", "dataset_digest": "data", "code_version": "c"}
    return SaveContext(store, run, attempt or take_attempt(store, run), **{**fixed, **more})


def alone_assembled(source: FragmentSource, kind: str) -> dict[str, Tensor] | None:
    """The whole tensors, where one process has all of them."""
    return gather_full_state(source.fragments(), source.shapes(), kind)


def packed(tensors: dict[str, Tensor]) -> bytes:
    """A model file."""
    return bytes(pack_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}))


def alone_writer(saving: SaveContext, **more: Any) -> CheckpointWriter:
    """The writer of a run of one rank."""
    return CheckpointWriter(saving, SingleProcess(), alone_assembled, packed, **more)


def save_steps(saving: SaveContext, *steps: int, **more: Any) -> CheckpointWriter:
    """Train one process through *steps*, saving at each; 10 samples a step."""
    writer, state = alone_writer(saving), State(**more)
    for step in steps:
        state.train(step - state.updates)
        writer.save(step, step * 10, state)
        assert writer.wait(), writer.take_alarms()
    return writer


def restored(store: Store, card: CheckpointCard) -> State:
    """What the checkpoint of *card* holds, read by one process."""
    with CheckpointReader(store, card) as reader:
        state = State(model=reader.shapes(), kinds=tuple(sorted(reader.kinds())), seed=99)
        state.load(reader)
    return state


def same(state: State, other: State) -> bool:
    """Equal to the last bit, in whatever order the kinds were asked for."""
    return state.updates == other.updates and state.bits() == other.bits()


# Real ranks that are forked from a server which has torch loaded: a test can afford dozens of them.


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit code (negative: a signal), what it returned or the text of what it raised."""

    code: int | None
    result: Any
    error: str


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    env: dict[int, dict[str, str]] | None = None,
    seconds: float = 60.0,
    grace_seconds: float = 1.0,
) -> list[Ended]:
    """``function(collective, *arguments)`` on real gloo ranks; *env*: variables of single ranks.

    When one is killed, the others have *grace_seconds* before they are killed too.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.states"])
    port, pipes, processes = free_port(), [], []
    for rank in range(world_size):
        ours, theirs = context.Pipe()
        place = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = dict(os.environ) | {name: str(value) for name, value in place.items()}
        process = context.Process(
            target=_rank, args=(theirs, variables | (env or {}).get(rank, {}), function, arguments), daemon=True
        )
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return _ended(processes, pipes, seconds, grace_seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _ended(processes: list[Any], pipes: list[Connection], seconds: float, grace_seconds: float) -> list[Ended]:
    told: dict[int, tuple[Any, str]] = {}
    waiting = {pipe: rank for rank, pipe in enumerate(pipes)}
    limit = seconds
    while waiting:
        ready = wait(list(waiting), limit)
        if not ready:
            assert limit == grace_seconds, f"{sorted(waiting.values())} did not end"
            break
        for pipe in ready:
            rank = waiting.pop(pipe)  # type: ignore[index]
            try:
                told[rank] = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                limit = grace_seconds  # it was killed
    for rank, process in enumerate(processes):
        if rank in told:
            process.join(10)
    return [Ended(process.exitcode, *told.get(rank, (None, "killed"))) for rank, process in enumerate(processes)]


def _rank(
    pipe: Connection, variables: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    try:
        pipe.send((function(ProcessGroup(World.from_environment()), *arguments), ""))
    except Exception as error:
        pipe.send((None, f"{type(error).__name__}: {error}"))
    pipe.close()
    os._exit(0)  # a rank whose peers are gone must not wait for them while it ends


def rank_writer(collective: Collective, saving: SaveContext, **more: Any) -> CheckpointWriter:
    """The writer of a real rank, with a group of its own. Every rank has to call it."""
    group = dist.new_group(backend="gloo")

    def assemble(source: FragmentSource, kind: str) -> dict[str, Tensor] | None:
        return gather_full_state(source.fragments(), source.shapes(), kind, group)

    return CheckpointWriter(saving, ProcessGroup(collective.world, group), assemble, packed, **more)


def begin(collective: Collective, workspace: str, **more: Any) -> SaveContext:
    """A new attempt, of all ranks."""
    store = open_store(workspace)
    attempt = collective.broadcast(take_attempt(store, RUN) if collective.world.is_first else None)
    return new_saving(store, attempt=attempt, **more)


# Ranks that are threads: for what needs no process of its own.


class _Meeting:
    def __init__(self, size: int) -> None:
        self.barrier, self.slots = threading.Barrier(size, timeout=30), [None] * size


class ThreadCollective:
    """The Collective of threads that share a *meeting*."""

    def __init__(self, world: World, meeting: Any) -> None:
        self.world, self._meeting = world, meeting

    def gather(self, value: Any) -> list[Any]:
        """See Collective."""
        self._meeting.slots[self.world.rank] = value
        self._meeting.barrier.wait()
        values = list(self._meeting.slots)
        self._meeting.barrier.wait()
        return values

    def broadcast(self, value: Any) -> Any:
        """See Collective."""
        return self.gather(value)[0]


def run_threads(function: Callable[[Collective], Any], size: int) -> list[Any]:
    """What *function* returned, or raised, in each of *size* threads that have a collective."""
    meeting, results = _Meeting(size), [None] * size

    def work(rank: int) -> None:
        try:
            results[rank] = function(ThreadCollective(World(rank, size), meeting))
        except Exception as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def thread_writer(collective: Collective, saving: SaveContext, **more: Any) -> CheckpointWriter:
    """The writer of a rank that is a thread. Every rank has to call it."""
    world = collective.world
    background = ThreadCollective(world, collective.broadcast(_Meeting(world.size) if world.is_first else None))

    def assemble(source: FragmentSource, kind: str) -> dict[str, Tensor] | None:
        gathered = [part for parts in background.gather(source.fragments()) for part in parts if part.kind == kind]
        return gather_full_state(gathered, source.shapes(), kind) if world.is_first else None

    return CheckpointWriter(saving, background, assemble, packed, **more)
