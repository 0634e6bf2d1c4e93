"""The program that the sandbox starts: reads images from its standard input, checks them, answers on standard output.

``python -P -m pipeline.images.sandbox_child SETTINGS``. It never outlives its parent, and holds no more than it may.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import time

from pipeline.base.children import end_with_parent
from pipeline.base.failpoints import VARIABLE
from pipeline.images.check import CheckOptions
from pipeline.images.decode import ImageRejectedError
from pipeline.images.examine import examine
from pipeline.images.frames import (
    LENGTH,
    READY,
    SIZE,
    SIZE_BODY,
    ChildSettings,
    pack_checked,
    pack_rejected,
    settings_from_json,
)

LARGE_PIXELS = 4_000_000  # from here on the parent is told the size, and waits longer
FAULT = "decode"  # the value of VITPIPE_FAIL_AT that makes ``_fault`` look


def main() -> None:
    """Serve until the input ends."""
    settings = settings_from_json(sys.argv[1])
    images, answers = _take_streams()
    _confine(settings)
    faults = os.environ.get(VARIABLE) == FAULT
    _send(answers, READY)
    _silence()
    while data := _next_image(images):
        _answer(data, settings.options, answers, faults)


def _take_streams() -> tuple[io.FileIO, int]:
    """The pipes from and to the parent, out of the way of whatever else reads or prints."""
    images, answers = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return io.FileIO(images, "rb"), answers


def _confine(settings: ChildSettings) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = settings.memory_bytes if hard == resource.RLIM_INFINITY else min(hard, settings.memory_bytes)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    end_with_parent(settings.parent)


def _silence() -> None:
    """From here on the decoders' remarks go nowhere; what went wrong before was the parent's to read."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)


def _next_image(images: io.FileIO) -> bytes:
    """b"" at the end of the input. The parent sends no empty image."""
    head = images.read(LENGTH.size)
    if not head or len(head) < LENGTH.size:
        return b""
    (missing,) = LENGTH.unpack(head)
    parts = []
    while missing:
        part = images.read(missing)
        if not part:
            return b""
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _answer(data: bytes, options: CheckOptions, answers: int, faults: bool) -> None:
    def on_size(num_pixels: int) -> None:
        if num_pixels >= LARGE_PIXELS:
            _send(answers, SIZE, SIZE_BODY.pack(num_pixels))

    try:
        if faults:
            _fault(data)
        head, rest = pack_checked(examine(data, options, on_size))
    except ImageRejectedError as error:
        lacking = isinstance(error.__context__, MemoryError)  # decode cannot know that there is a limit
        _send(answers, pack_rejected(ImageRejectedError("decoder-memory", error.detail) if lacking else error))
    except MemoryError as error:
        _send(answers, pack_rejected(ImageRejectedError("decoder-memory", str(error))))
    else:
        _send(answers, head, rest)


def _send(answers: int, *parts: bytes) -> None:
    """One frame whose body is *parts*."""
    left = memoryview(b"".join([LENGTH.pack(sum(map(len, parts))), *parts]))
    while left:
        left = left[os.write(answers, left) :]


def _fault(data: bytes) -> None:
    """Do what the marker at the end of *data* says, if there is one."""
    marker = data[-40:].rpartition(b"vitpipe-fault:")[2]
    if marker == b"segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif marker == b"sleep":
        time.sleep(3600)
    elif marker == b"spin":
        while True:
            pass
    elif marker == b"allocate":
        held = []
        while True:
            held.append(bytes(64 << 20))  # of zeros: address space, no memory


if __name__ == "__main__":
    main()
