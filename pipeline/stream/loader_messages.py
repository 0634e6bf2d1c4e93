"""What a rank and its loader processes send each other: requests of sixteen bytes, answers in frames; and the settings.

Answers are pickled: a loader process runs the rank's own code on the rank's own data, as its threads would.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass

from pipeline.base.errors import VitpipeError
from pipeline.base.shared_memory import SharedMemory
from pipeline.stream.batch import Replacement, SlotLayout, StreamPlan
from pipeline.stream.dataset import DatasetReader

REQUEST = struct.Struct("<QQ")  # step, slot of the shared memory


@dataclass(frozen=True)
class BatchDone:
    """Batch *step* is in its slot."""

    step: int
    replaced: list[Replacement]


@dataclass(frozen=True)
class BatchFailed:
    """Batch *step* cannot be built."""

    step: int
    error: VitpipeError


@dataclass(frozen=True)
class LogLine:
    """A line for the log."""

    text: str


Message = BatchDone | BatchFailed | LogLine


def pack_message(message: Message) -> bytes:
    """The body of a frame."""
    return pickle.dumps(message)


def unpack_message(body: memoryview) -> Message:
    """Of ``pack_message``."""
    message: Message = pickle.loads(body)  # noqa: S301 - see the module
    return message


@dataclass(frozen=True)
class WorkerSettings:
    """The settings of every loader process of a rank.

    *stuck_seconds*: how long one sample may take, without a message that a store is waited for.
    """

    readers: tuple[DatasetReader, ...]
    plan: StreamPlan
    layout: SlotLayout
    stuck_seconds: float


class SharedSettings:
    """Settings in memory that each loader process reads: they may be larger than a socket holds. Raises OSError."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        data = pickle.dumps(settings)
        self._memory = SharedMemory("vitpipe-loader-settings", len(data))
        self._memory.buffer[:] = data

    @property
    def descriptor(self) -> int:
        """Of the memory."""
        return self._memory.descriptor

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


def read_settings(descriptor: int) -> WorkerSettings:
    """The settings of this loader process, from the *descriptor* that it has inherited."""
    with SharedMemory.attach(descriptor) as data:
        settings: WorkerSettings = pickle.loads(data)  # noqa: S301 - from the rank that started this process
    return settings
