"""What a rank and its loader processes say to each other: requests of sixteen bytes, answers in frames.

Answers are pickled: a loader process runs the rank's own code on the rank's own data, as its threads would.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.base.errors import VitpipeError
from pipeline.stream.batch import Replacement, SlotLayout, StreamPlan
from pipeline.stream.dataset import DatasetReader

REQUEST = struct.Struct("<QQ")  # step, slot of the shared memory
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class BatchDone:
    """Batch *step* stands in its slot."""

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


def pack_word(word: Message) -> bytes:
    """One frame."""
    body = pickle.dumps(word)
    return _LENGTH.pack(len(body)) + body


def unpack_messages(received: bytearray) -> Iterator[Message]:
    """Take the frames that are complete out of *received*."""
    while len(received) >= _LENGTH.size:
        end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
        if end > len(received):
            return
        word: Message = pickle.loads(received[_LENGTH.size : end])  # noqa: S301 - see the module
        del received[:end]
        yield word


@dataclass(frozen=True)
class WorkerSettings:
    """What every loader process of a rank is told when it starts.

    *stuck_seconds*: how long one sample may take, without a word that a store is waited for.
    """

    readers: tuple[DatasetReader, ...]
    plan: StreamPlan
    layout: SlotLayout
    stuck_seconds: float


class SharedSettings:
    """What loader processes are told, in memory that each of them reads: it may be larger than a socket holds."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.descriptor = os.memfd_create("vitpipe-loader-settings")
        with os.fdopen(self.descriptor, "wb", closefd=False) as file:
            file.write(pickle.dumps(settings))

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.descriptor)
