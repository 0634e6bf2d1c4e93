"""Image files for tests: by Pillow's encoders, and by hand where no encoder may have a say in the bytes."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    """*image* as a file of *format_name*."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def png(pixels: Any, **options: Any) -> bytes:
    """An array as a PNG."""
    return encoded(Image.fromarray(np.asarray(pixels)), "PNG", **options)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """uint8 (H, W, 3), seeded."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes whose header promises *width* x *height* pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


def bmp(pixels: Any) -> bytes:
    """An array (H, W, 3) as a 24-bit BMP, byte for byte the same on every machine."""
    array = np.asarray(pixels, dtype=np.uint8)
    height, width = array.shape[:2]
    rows = [row[:, ::-1].tobytes() + bytes(-3 * width % 4) for row in array[::-1]]
    body = b"".join(rows)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(body), 2835, 2835, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 14 + len(header) + len(body), 0, 0, 14 + len(header)) + header + body
