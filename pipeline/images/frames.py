"""The words between the sandbox and its child: frames of a length and a body, and what the bodies hold.

Nothing here is pickled: the child reads bytes that nobody trusts, and its parent takes only numbers and bytes from it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass

from pipeline.images.check import Checked, CheckOptions, Reencode
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


def pack_checked(checked: Checked) -> tuple[bytes, bytes]:
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


def unpack(body: memoryview) -> Checked | ImageRejectedError:
    """Of ``pack_checked`` and ``pack_rejected``."""
    if body[:1] == REJECTED:
        reason, _, detail = str(body[1:], "utf-8").partition("\0")
        return ImageRejectedError(reason, detail)
    values = _CHECKED.unpack_from(body, 1)
    width, height, num_pixels, kind, has_sums, has_digest, digest = values[:7]
    return Checked(
        facts=ImageFacts(width, height, kind.rstrip(b"\0").decode()),
        num_pixels=num_pixels,
        sums=values[7:10] if has_sums else None,
        squares=values[10:13] if has_sums else None,
        pixels_sha256=digest.hex() if has_digest else "",
        data=bytes(body[1 + _CHECKED.size :]) if values[13] else None,
    )
