"""Size, format and orientation from the first bytes of a file, without its pixels: JPEG and PNG are parsed here.

The parsers know the plain case only. Whatever is odd (None) is left to Pillow, so both ways always say the same.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise

_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ORIENTATION = 0x0112
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes of a TIFF type
_SHORT = 3
# markers before the pixels that say nothing of their shape: Huffman and quantisation tables, restarts, comments, APPn
_PASSED = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive; all with Huffman codes
_APP1, _SCAN = 0xE1, 0xDA
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # of each colour type
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


@dataclass(frozen=True)
class Header:
    """Width and height as stored, in pixels; the EXIF orientation, 1 when there is none; channels of a JPEG."""

    width: int
    height: int
    orientation: int
    channels: int


class _OddError(Exception):
    """Not the plain case."""


def jpeg_header(data: bytes) -> Header | None:
    """The header of a plain JPEG: 8 bits, 1, 3 or 4 channels, baseline or progressive. None for all else."""
    try:
        return _plain_jpeg(data) if data.startswith(b"\xff\xd8\xff") else None
    except (_OddError, IndexError):
        return None


def _plain_jpeg(data: bytes) -> Header:
    size: tuple[int, int, int] | None = None
    exif: int | None = None
    turned_by_xmp = False
    marker, body, at = _segment(data, 2)
    while marker != _SCAN:
        if marker in _FRAMES:
            if size or at - body < 7 or data[body] != 8:
                raise _OddError
            size = (data[body + 3] << 8 | data[body + 4], data[body + 1] << 8 | data[body + 2], data[body + 5])
        elif marker not in _PASSED:
            raise _OddError
        elif marker == _APP1 and data.startswith(_EXIF, body):
            found = exif_orientation(data[body + len(_EXIF) : at])
            if exif is not None or found is None:
                raise _OddError
            exif = found
        elif marker == _APP1 and data.startswith(_XMP, body):
            turned_by_xmp = turned_by_xmp or b"Orientation" in data[body:at]
        marker, body, at = _segment(data, at)
    if not size or 0 in size or size[2] not in (1, 3, 4) or (turned_by_xmp and not exif):
        raise _OddError
    return Header(size[0], size[1], exif or 1, size[2])


def _segment(data: bytes, at: int) -> tuple[int, int, int]:
    """The marker at *at*, where its body starts, and where it ends."""
    end = at + 2 + (data[at + 2] << 8 | data[at + 3])
    if data[at] != 0xFF or end < at + 4 or end > len(data):
        raise _OddError
    return data[at + 1], at + 4, end


def exif_orientation(tiff: bytes) -> int | None:
    """The orientation in an EXIF block, 0 when it holds none, None when the block is not in order."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        return None if order is None else _orientation(tiff, order)
    except (struct.error, KeyError):
        return None


def _orientation(tiff: bytes, order: str) -> int | None:
    start = struct.unpack_from(f"{order}I", tiff, 4)[0]
    count = struct.unpack_from(f"{order}H", tiff, start)[0]
    entry = struct.Struct(f"{order}HHI4s")
    entries = [entry.unpack_from(tiff, start + 2 + 12 * number) for number in range(count)]
    if any(first[0] >= second[0] for first, second in pairwise(entries)):
        return None  # twice, or not sorted
    for tag, kind, number, value in entries:
        num_bytes = _SIZES[kind] * number
        if num_bytes > 4 and struct.unpack(f"{order}I", value)[0] + num_bytes > len(tiff):
            return None  # Pillow reads no entry after one that points outside
        if tag == _ORIENTATION:
            upright: int = struct.unpack_from(f"{order}H", value)[0]
            return upright if (kind, number) == (_SHORT, 1) else None
    return 0


def png_header(data: bytes) -> Header | None:
    """The header of a PNG whose chunks are all there. None for all else, and where text may hold an orientation."""
    if len(data) < 33 or data[:16] != _PNG + b"\0\0\0\rIHDR":
        return None
    width, height, depth, colour, *methods = struct.unpack_from(">IIBBBBB", data, 16)
    whole = zlib.crc32(data[12:29]) == int.from_bytes(data[29:33], "big")
    if not whole or depth not in _PNG_DEPTHS.get(colour, ()) or methods[:2] != [0, 0] or 0 in (width, height):
        return None
    orientation = _png_orientation(data)
    return None if orientation is None else Header(width, height, orientation or 1, 0)


def _png_orientation(data: bytes) -> int | None:
    at, end, orientation, pixels = 33, len(data) - 12, 0, False
    while at <= end:
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IEND":
            return orientation if pixels else None
        if kind == b"IDAT":
            pixels = True
        elif kind == b"eXIf":
            found = None if orientation else exif_orientation(data[at + 8 : at + 8 + length])
            if found is None:
                return None
            orientation = found
        elif kind in _PNG_TEXTS and data.startswith((b"XML:com.adobe.xmp", b"Raw profile type exif"), at + 8):
            return None
        at += length + 12
    return None
