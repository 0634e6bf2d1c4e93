"""The words between the sandbox and its child: frames of a length and a body, and what the bodies hold.

Nothing here is pickled: the child reads bytes that nobody trusts, and its parent takes only numbers and bytes from it.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import struct
import sys
import time
from dataclasses import asdict, dataclass

from pipeline.base.child_process import end_with_parent
from pipeline.base.failpoints import VARIABLE
from pipeline.images.check import CheckOptions, CheckResult, Reencode, check_image
from pipeline.images.decode import ImageFacts, ImageRejectedError

LENGTH = struct.Struct("<Q")
READY, CHECKED, REJECTED, SIZE = b"H", b"C", b"R", b"S"  # the first byte of what the child says
ANSWERS = CHECKED + REJECTED
SIZE_BODY = struct.Struct("<Q")
_CHECKED = struct.Struct("<IIQ8s??32s3Q3Q?")


@dataclass(frozen=True)
class ChildSettings:
    """What the child is told when it starts."""

    parent: int
    memory_bytes: int
    options: CheckOptions

    def to_json(self) -> str:
        """As an argument of its command line."""
        return json.dumps(asdict(self) | {"options": _plain(self.options)})


def settings_from_json(text: str) -> ChildSettings:
    """Of ``to_json``."""
    tree = json.loads(text)
    options = tree["options"]
    recipe = Reencode.model_validate(options.pop("reencode"))
    return ChildSettings(tree["parent"], tree["memory_bytes"], CheckOptions(**options, reencode=recipe))


def _plain(options: CheckOptions) -> dict[str, object]:
    return {
        "statistics": options.statistics,
        "pixels_sha256": options.pixels_sha256,
        "reencode": options.reencode.model_dump(),
    }


def pack_checked(checked: CheckResult) -> tuple[bytes, bytes]:
    """The head of the body, and the re-encoded bytes that follow it."""
    facts = checked.facts
    head = _CHECKED.pack(
        facts.width,
        facts.height,
        checked.num_pixels,
        facts.format.encode(),
        checked.sums is not None,
        bool(checked.pixels_sha256),
        bytes.fromhex(checked.pixels_sha256),
        *(checked.sums or (0, 0, 0)),
        *(checked.squares or (0, 0, 0)),
        checked.data is not None,
    )
    return CHECKED + head, checked.data or b""


def pack_rejected(error: ImageRejectedError) -> bytes:
    """The body for an image that is left out."""
    return REJECTED + f"{error.reason}\0{error.detail}".encode(errors="replace")


def unpack(body: memoryview) -> CheckResult | ImageRejectedError:
    """Of ``pack_checked`` and ``pack_rejected``."""
    if body[:1] == REJECTED:
        reason, _, detail = str(body[1:], "utf-8").partition("\0")
        return ImageRejectedError(reason, detail)
    values = _CHECKED.unpack_from(body, 1)
    width, height, num_pixels, kind, has_sums, has_digest, digest = values[:7]
    return CheckResult(
        facts=ImageFacts(width, height, kind.rstrip(b"\0").decode()),
        num_pixels=num_pixels,
        sums=values[7:10] if has_sums else None,
        squares=values[10:13] if has_sums else None,
        pixels_sha256=digest.hex() if has_digest else "",
        data=bytes(body[1 + _CHECKED.size :]) if values[13] else None,
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
        head, rest = pack_checked(check_image(data, options, on_size))
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
