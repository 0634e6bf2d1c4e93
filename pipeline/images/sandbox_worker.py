"""The program of the process that decodes for a ``Sandbox``, and the messages between the two.

``python -P -m pipeline.images.sandbox_worker PARENT pipes SETTINGS``. A frame to it is an image, a frame from it one
letter and what belongs to that::

    H   ready
    S   the number of pixels (8 bytes), sent before a large image is decoded
    C   CheckResult: _RESULT, then the re-encoded bytes
    R   ImageRejectedError: reason, zero, detail

Nothing is pickled: the process reads bytes that nobody trusts, and its parent takes only numbers and bytes from it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import time
from dataclasses import asdict, dataclass

from pipeline.base.child_process import ChildChannel
from pipeline.base.failpoints import VARIABLE
from pipeline.images.check import CheckOptions, CheckResult, Reencode, check_image
from pipeline.images.decode import ImageFacts, ImageRejectedError

READY, SIZE = b"H", b"S"
SIZE_BODY = struct.Struct("<Q")
LARGE_PIXELS = 4_000_000  # from here on the parent gets the size, and waits longer
_CHECKED, _REJECTED = b"C", b"R"
# width, height, pixels, format, has sums, has digest, digest, sums, squares, has re-encoded bytes
_RESULT = struct.Struct("<IIQ8s??32s3Q3Q?")
_FAULT = "decode"  # the value of VITPIPE_FAIL_AT under which faults are obeyed


@dataclass(frozen=True)
class ChildSettings:
    """The settings with which the process starts. *memory_bytes* limits its address space."""

    memory_bytes: int
    options: CheckOptions

    def to_json(self) -> str:
        """As an argument of its command line."""
        options = {
            "statistics": self.options.statistics,
            "pixels_sha256": self.options.pixels_sha256,
            "reencode": self.options.reencode.model_dump(),
        }
        return json.dumps(asdict(self) | {"options": options})


def settings_from_json(text: str) -> ChildSettings:
    """Of ``to_json``."""
    tree = json.loads(text)
    options = tree["options"]
    recipe = Reencode.model_validate(options.pop("reencode"))
    return ChildSettings(tree["memory_bytes"], CheckOptions(**options, reencode=recipe))


def pack_checked(checked: CheckResult) -> tuple[bytes, bytes]:
    """The head of the body, and the re-encoded bytes that follow it."""
    facts = checked.facts
    head = _RESULT.pack(
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
    return _CHECKED + head, checked.data or b""


def pack_rejected(error: ImageRejectedError) -> bytes:
    """The body for an image that is left out."""
    return _REJECTED + f"{error.reason}\0{error.detail}".encode(errors="replace")


def unpack(body: memoryview) -> CheckResult | ImageRejectedError:
    """Of ``pack_checked`` and ``pack_rejected``."""
    if body[:1] == _REJECTED:
        reason, _, detail = str(body[1:], "utf-8").partition("\0")
        return ImageRejectedError(reason, detail)
    values = _RESULT.unpack_from(body, 1)
    width, height, num_pixels, kind, has_sums, has_digest, digest = values[:7]
    return CheckResult(
        facts=ImageFacts(width, height, kind.rstrip(b"\0").decode()),
        num_pixels=num_pixels,
        sums=values[7:10] if has_sums else None,
        squares=values[10:13] if has_sums else None,
        pixels_sha256=digest.hex() if has_digest else "",
        data=bytes(body[1 + _RESULT.size :]) if values[13] else None,
    )


def main() -> None:
    """Serve until the input ends."""
    channel, (text,) = ChildChannel.open(sys.argv)
    settings = settings_from_json(text)
    _limit_memory(settings.memory_bytes)
    obeys_faults = os.environ.get(VARIABLE) == _FAULT
    channel.send(READY)
    _silence()
    while data := channel.receive():
        _answer(channel, data, settings.options, obeys_faults)


def _limit_memory(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(
        resource.RLIMIT_AS, (num_bytes if hard == resource.RLIM_INFINITY else min(hard, num_bytes), hard)
    )


def _silence() -> None:
    """From here on the decoders' remarks go nowhere; the parent reads what went wrong before."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)


def _answer(channel: ChildChannel, data: bytes, options: CheckOptions, obeys_faults: bool) -> None:
    def on_size(num_pixels: int) -> None:
        if num_pixels >= LARGE_PIXELS:
            channel.send(SIZE, SIZE_BODY.pack(num_pixels))

    try:
        if obeys_faults:
            _obey_fault(data)
        parts = pack_checked(check_image(data, options, on_size))
    except ImageRejectedError as error:
        lacks_memory = isinstance(error.__context__, MemoryError)  # decode cannot know that there is a limit
        rejected = ImageRejectedError("decoder-memory", error.detail) if lacks_memory else error
        channel.send(pack_rejected(rejected))
    except MemoryError as error:
        channel.send(pack_rejected(ImageRejectedError("decoder-memory", str(error))))
    else:
        channel.send(*parts)


def _obey_fault(data: bytes) -> None:
    """Do what the marker at the end of *data* says, if there is one. For tests."""
    marker = data[-40:].rpartition(b"vitpipe-fault:")[2]
    if marker == b"segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif marker == b"sleep":
        time.sleep(3600)
    elif marker == b"spin":
        while True:
            pass
    elif marker == b"allocate":
        blocks = []
        while True:
            blocks.append(bytes(64 << 20))  # of zeros: address space, no memory


if __name__ == "__main__":
    main()
