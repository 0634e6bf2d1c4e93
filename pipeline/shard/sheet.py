"""A contact sheet of samples as a PNG: thumbnails in a grid, under each its class and size, above all what it is.

The same samples give the same bytes. Images are decoded in the sandbox before they are decoded here: a dataset whose
images were checked by their headers only may hold one that kills a decoder.
"""

from __future__ import annotations

import bisect
import io
import math
import unicodedata
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from pipeline.images.check import CheckOptions
from pipeline.images.decode import ImageRejectedError, decode
from pipeline.images.sandbox import shared_sandbox
from pipeline.records.dataset import DatasetCard
from pipeline.shard.pick import Picked

# All in pixels.
_TILE = 160  # side of the square that a thumbnail is centred in
_GAP = 14
_MARGIN = 22
_CAPTION = 42  # below a tile
_HEADER = 62
_MIN_WIDTH = 640  # room for the header of a sheet of few samples
_MAX_COLUMNS = 10
_MAX_ENLARGED = 5  # times; small images stay small, their pixels sharp

_PAPER, _GROUND, _INK, _FAINT = (250, 250, 249), (226, 226, 224), (28, 28, 30), (112, 112, 116)


def draw_sheet(card: DatasetCard, samples: list[Picked], told: str) -> bytes:
    """The sheet of *samples* as the bytes of a PNG; *told* says in its header what is shown."""
    columns = max(min(3, len(samples)), min(_MAX_COLUMNS, math.ceil(math.sqrt(len(samples) * 4 / 3))))
    rows = math.ceil(len(samples) / columns)
    width = max(_MIN_WIDTH, 2 * _MARGIN + columns * _TILE + (columns - 1) * _GAP)
    height = 2 * _MARGIN + _HEADER + rows * (_TILE + _CAPTION) + (rows - 1) * _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = _Pen(ImageDraw.Draw(sheet))
    pen.write((_MARGIN, _MARGIN), card.name, 24, _INK, width - 2 * _MARGIN)
    line = f"{told}  ·  digest {card.digest[:16]}"
    pen.write((_MARGIN, _MARGIN + 32), line, 14, _FAINT, width - 2 * _MARGIN)
    thumbnails = _thumbnails(samples)
    for place, (sample, thumbnail) in enumerate(zip(samples, thumbnails, strict=True)):
        left = _MARGIN + place % columns * (_TILE + _GAP)
        top = _MARGIN + _HEADER + place // columns * (_TILE + _CAPTION + _GAP)
        pen.draw.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), _GROUND)
        if isinstance(thumbnail, Image.Image):
            inset = ((_TILE - thumbnail.width) // 2, (_TILE - thumbnail.height) // 2)
            sheet.paste(thumbnail, (left + inset[0], top + inset[1]))
        else:
            pen.write((left + 10, top + _TILE // 2 - 8), thumbnail, 14, _FAINT, _TILE - 20)
        pen.write((left, top + _TILE + 5), _label(card, sample), 14, _INK, _TILE)
        facts = f"{sample.width} x {sample.height}  {sample.format}"
        pen.write((left, top + _TILE + 23), facts, 12, _FAINT, _TILE)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _thumbnails(samples: list[Picked]) -> list[Image.Image | str]:
    """Each sample at the size of a tile, or why it cannot be shown."""
    found: list[Image.Image | str] = []
    for _, data, outcome in shared_sandbox(CheckOptions()).check((None, sample.image) for sample in samples):
        if isinstance(outcome, ImageRejectedError):
            found.append(outcome.reason)
        else:
            found.append(_fitted(Image.fromarray(decode(data)[0])))
    return found


def _fitted(image: Image.Image) -> Image.Image:
    """*image* with its long side as long as the tile; a small one by a whole factor, so that its pixels stay square."""
    longest = max(image.size)
    if longest <= _TILE:
        factor = min(_MAX_ENLARGED, _TILE // longest)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    width, height = (max(1, round(side * _TILE / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=4.0)


def _label(card: DatasetCard, sample: Picked) -> str:
    """The names of the sample's classes. One that has no letter of the font is told by its number."""
    font = _font(14)
    names = []
    for label in sample.labels:
        shown = _writable(card.class_names[label], font)
        names.append(shown if shown.strip("? ") else f"class {label}")
    return ", ".join(names) or "no label"


class _Pen:
    """Writes single lines that fit."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self.draw = draw

    def write(self, place: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], max_width: int) -> None:
        """Write *text* at *place* (its left upper corner), elided in its middle to *max_width* pixels."""
        font = _font(size)
        self.draw.text(place, _elided(_writable(text, font), font, max_width), colour, font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType")
    return font


def _elided(text: str, font: ImageFont.FreeTypeFont, max_width: int) -> str:
    """*text*, or its two ends: of a nested class the last name says most."""
    if font.getlength(text) <= max_width:
        return text
    fitting = bisect.bisect_right(
        range(1, len(text)), max_width, key=lambda kept: math.ceil(font.getlength(_ends(text, kept)))
    )
    return _ends(text, fitting)


def _ends(text: str, kept: int) -> str:
    return f"{text[: kept - kept // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"


def _writable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """*text* in letters that the font has: accents are dropped, anything else is a question mark."""
    missing = bytes(font.getmask("\uffff"))
    return "".join(_letter(letter, font, missing) for letter in text)


def _letter(letter: str, font: ImageFont.FreeTypeFont, missing: bytes) -> str:
    if letter.isspace():
        return " "
    plain = unicodedata.normalize("NFKD", letter)[0]
    if unicodedata.combining(letter):
        return ""
    for candidate in (letter, plain):
        if candidate.isprintable() and (candidate.isascii() or bytes(font.getmask(candidate)) != missing):
            return candidate
    return "?"
