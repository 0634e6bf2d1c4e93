"""JPEGs of every common kind, and ways to damage them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from tests.support.pictures import encoded


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture with edges and slopes in colour, as decoders that differ would show."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(np.clip(large + draw.integers(-9, 10, large.shape), 0, 255).astype(np.uint8))


def exif(orientation: int, text: str = "a description") -> Image.Exif:
    block = Image.Exif()
    block[0x0112], block[0x010E], block[0x011A] = orientation, text, 72.0
    return block


def jpegs(count: int, seed: int) -> Iterator[bytes]:
    """*count* good files: RGB, grey and CMYK; all subsamplings; progressive; restarts; EXIF, XMP, ICC; odd sizes."""
    draw = random.Random(seed)
    for number in range(count):
        image = smooth(draw.randrange(1, 130), draw.randrange(1, 130), number)
        if number % 10 == 0:
            sampling = draw.choice(["440", "411", "422", "420", "444", "Gray"])
            yield simplejpeg.encode_jpeg(
                np.ascontiguousarray(image), draw.randrange(30, 100), colorsubsampling=sampling
            )
            continue
        options: dict[str, Any] = {"quality": draw.randrange(1, 101), "subsampling": draw.choice([0, 1, 2])}
        options |= draw.choice([{}, {"exif": exif(draw.randrange(10))}])
        options |= draw.choice([{}, {}, {"icc_profile": bytes(draw.randrange(1, 70_000))}, {"comment": b"by hand"}])
        options |= draw.choice([{}, {}, {"restart_marker_blocks": draw.randrange(1, 5)}, {"optimize": True}])
        options |= draw.choice([{}, {}, {"xmp": b'<x tiff:Orientation="%d"/>' % draw.randrange(1, 9)}])
        yield encoded(image.convert(draw.choice(["RGB", "RGB", "RGB", "L", "CMYK"])), "JPEG", **options)
        yield encoded(image.convert(draw.choice(["RGB", "L"])), "JPEG", progressive=True, quality=options["quality"])


def damaged(data: bytes, draw: random.Random) -> bytes:
    """*data* cut, longer, with bytes changed, lost or doubled."""
    kind, file = draw.randrange(5), bytearray(data)
    if kind == 0:
        return data[: draw.randrange(len(data))]
    if kind == 1:
        return data + draw.randbytes(draw.randrange(1, 50))
    if kind == 2:
        start = draw.randrange(len(data))
        stop = start + draw.randrange(1, 30)
        return data[:start] + draw.choice([b"", data[start:stop] * 2]) + data[stop:]
    for _ in range(draw.choice([1, 1, 2, 5])):
        file[draw.randrange(min(len(file), 700 if kind == 3 else 10**9))] = draw.choice(
            [0, 255, 1, draw.randrange(256)]
        )
    return bytes(file)
