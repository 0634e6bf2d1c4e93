"""A contact sheet: samples drawn from a dataset by a seed, read out of the shards, and rendered as one PNG.

Each sample is as likely as any other. Only the indexes of shards that are hit are read, and of the shards only the
bytes of the images.
"""

from __future__ import annotations

import bisect
import io
import itertools
import math
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.seeds import generator
from pipeline.base.store.object_file import open_object
from pipeline.base.store.protocol import Store
from pipeline.images.check import CheckOptions
from pipeline.images.decode import ImageRejectedError, decode
from pipeline.images.sandbox import shared_sandbox
from pipeline.records.dataset import DatasetCard, ShardEntry
from pipeline.shard.commit import read_shards
from pipeline.shard.index import index_name, read_statistics

_READERS = 8  # objects that are read at a time
_COLUMNS = ["key", "labels", "image_offset", "image_bytes", "sha256", "width", "height", "format"]

# The sheet's measures, in pixels.
_TILE = 160  # side of the square that a thumbnail is centred in
_GAP = 14
_MARGIN = 22
_CAPTION = 42  # below a tile
_HEADER = 62
_MIN_WIDTH = 640  # room for the header of a sheet of few samples
_MAX_COLUMNS = 10
_MAX_ENLARGED = 5  # times; small images stay small, their pixels sharp
_PAPER, _GROUND, _INK, _FAINT = (250, 250, 249), (226, 226, 224), (28, 28, 30), (112, 112, 116)


@dataclass(frozen=True)
class DrawnSample:
    """One sample: its labels, its size in pixels, its format, and the bytes of its image."""

    labels: list[int]
    width: int
    height: int
    format: str
    image: bytes


def draw_samples(
    target: Store, card: DatasetCard, count: int, seed: int, label: int | None = None
) -> list[dict[str, Any]]:
    """*count* rows of the indexes, or all there are, in the order of the dataset; of class *label* when given.

    Each sample is as likely as any other. Reads only the indexes of shards that are hit (and with *label* the
    footers before them). Raises DamageError when an index is missing or is not what the card adds up to.
    """
    total = card.num_samples if label is None else card.statistics.label_counts[label]
    ranks = sorted(generator(seed, "sample", card.digest).choice(total, min(count, total), replace=False).tolist())
    shards = read_shards(target, card)
    with ThreadPoolExecutor(_READERS) as pool:
        hits = list(_hit_shards(shards, ranks, _num_candidates(target, shards, label, pool)))
        rows_of_shards = pool.map(lambda hit: _read_rows(target, hit[0], hit[1], label), hits)
        rows = list(itertools.chain.from_iterable(rows_of_shards))
    if len(rows) != len(ranks):
        raise DamageError(f"{target.uri}: the indexes have other samples than the card", "see vitpipe verify")
    return rows


def _num_candidates(
    target: Store, shards: list[ShardEntry], label: int | None, pool: ThreadPoolExecutor
) -> Iterator[int]:
    """How many samples each shard has to draw from."""
    if label is None:
        yield from (shard.num_samples for shard in shards)
        return
    for start in range(0, len(shards), _READERS):  # not all at once: the caller may need only the first ones
        yield from pool.map(lambda shard: _num_of_class(target, shard, label), shards[start : start + _READERS])


def _num_of_class(target: Store, shard: ShardEntry, label: int) -> int:
    with _index_errors(target, shard):
        return read_statistics(target, shard.name).labels[str(label)]


def _hit_shards(
    shards: list[ShardEntry], ranks: list[int], counts: Iterator[int]
) -> Iterator[tuple[ShardEntry, list[int]]]:
    """Each shard that has some of *ranks* (ascending), and which of its *counts* samples those are."""
    start, at = 0, 0
    for shard, count in zip(shards, counts, strict=False):
        inside = []
        while at < len(ranks) and ranks[at] < start + count:
            inside.append(ranks[at] - start)
            at += 1
        if inside:
            yield shard, inside
        start += count
        if at == len(ranks):
            return


def _read_rows(target: Store, shard: ShardEntry, ranks: list[int], label: int | None) -> list[dict[str, Any]]:
    """The *ranks*-th samples of *shard*, or of its samples of class *label*."""
    with _index_errors(target, shard), open_object(target, index_name(shard.name)) as file:
        index = pq.ParquetFile(file).read(columns=_COLUMNS)
        if label is not None:
            flat, parents = pc.list_flatten(index["labels"]), pc.list_parent_indices(index["labels"])
            index = index.take(parents.filter(pc.equal(flat, label)))
        rows: list[dict[str, Any]] = index.take(ranks).to_pylist()
        return [row | {"shard": shard.name} for row in rows]


@contextmanager
def _index_errors(target: Store, shard: ShardEntry) -> Iterator[None]:
    """Turns what reading a missing or damaged index raises into a DamageError that names it."""
    name = f"{target.uri}/{index_name(shard.name)}"
    try:
        yield
    except FileNotFoundError:
        raise DamageError(f"{name} is missing", "shard the dataset again") from None
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError):
        raise DamageError(f"{name} is damaged", "shard the dataset again") from None


def read_samples(target: Store, rows: list[dict[str, Any]]) -> list[DrawnSample]:
    """The images of *rows*, read by their offsets. Raises DamageError when one is not what the index says."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(partial(_read_sample, target), rows))


def _read_sample(target: Store, row: dict[str, Any]) -> DrawnSample:
    name = f"{target.uri}/{row['shard']}"
    try:
        image = target.read_range(row["shard"], row["image_offset"], row["image_bytes"])
    except FileNotFoundError:
        raise DamageError(f"{name} is missing", "shard the dataset again") from None
    if sha256_hex(image) != row["sha256"]:
        raise DamageError(f"{name}: sample {row['key']} is damaged", "shard the dataset again")
    return DrawnSample(row["labels"], row["width"], row["height"], row["format"], image)


def render_contact_sheet(card: DatasetCard, samples: list[DrawnSample], description: str) -> bytes:
    """The sheet of *samples* as the bytes of a PNG; *description* says in its header what is shown."""
    columns = max(min(3, len(samples)), min(_MAX_COLUMNS, math.ceil(math.sqrt(len(samples) * 4 / 3))))
    rows = math.ceil(len(samples) / columns)
    width = max(_MIN_WIDTH, 2 * _MARGIN + columns * _TILE + (columns - 1) * _GAP)
    height = 2 * _MARGIN + _HEADER + rows * (_TILE + _CAPTION) + (rows - 1) * _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = _Pen(ImageDraw.Draw(sheet))
    pen.write((_MARGIN, _MARGIN), card.name, 24, _INK, width - 2 * _MARGIN)
    line = f"{description}  ·  digest {card.digest[:16]}"
    pen.write((_MARGIN, _MARGIN + 32), line, 14, _FAINT, width - 2 * _MARGIN)
    thumbnails = _thumbnails(samples)
    for number, (sample, thumbnail) in enumerate(zip(samples, thumbnails, strict=True)):
        left = _MARGIN + number % columns * (_TILE + _GAP)
        top = _MARGIN + _HEADER + number // columns * (_TILE + _CAPTION + _GAP)
        pen.draw.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), _GROUND)
        if isinstance(thumbnail, Image.Image):
            inset = ((_TILE - thumbnail.width) // 2, (_TILE - thumbnail.height) // 2)
            sheet.paste(thumbnail, (left + inset[0], top + inset[1]))
        else:
            pen.write((left + 10, top + _TILE // 2 - 8), thumbnail, 14, _FAINT, _TILE - 20)
        pen.write((left, top + _TILE + 5), _label_text(card, sample), 14, _INK, _TILE)
        facts = f"{sample.width} x {sample.height}  {sample.format}"
        pen.write((left, top + _TILE + 23), facts, 12, _FAINT, _TILE)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _thumbnails(samples: list[DrawnSample]) -> list[Image.Image | str]:
    """Each sample at the size of a tile, or why it cannot be shown.

    The sandbox decodes each image before this process does: a dataset whose images were checked by their headers only
    may hold one that kills a decoder.
    """
    thumbnails: list[Image.Image | str] = []
    for _, data, outcome in shared_sandbox(CheckOptions()).check((None, sample.image) for sample in samples):
        if isinstance(outcome, ImageRejectedError):
            thumbnails.append(outcome.reason)
        else:
            thumbnails.append(_fitted(Image.fromarray(decode(data)[0])))
    return thumbnails


def _fitted(image: Image.Image) -> Image.Image:
    """*image* with its long side as long as the tile; a small one by an integer, so that pixels stay square."""
    longest = max(image.size)
    if longest <= _TILE:
        factor = min(_MAX_ENLARGED, _TILE // longest)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    width, height = (max(1, round(side * _TILE / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=4.0)


def _label_text(card: DatasetCard, sample: DrawnSample) -> str:
    """The names of the sample's classes; the number of a class whose name has no letter of the font."""
    font = _font(14)
    names = []
    for label in sample.labels:
        shown = _printable(card.class_names[label], font)
        names.append(shown if shown.strip("? ") else f"class {label}")
    return ", ".join(names) or "no label"


class _Pen:
    """Writes single lines, each in the width that it may take."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self.draw = draw

    def write(
        self, corner: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], max_width: int
    ) -> None:
        """Write *text* below and right of *corner*, elided in its middle to *max_width* pixels."""
        font = _font(size)
        self.draw.text(corner, _elided(_printable(text, font), font, max_width), colour, font)


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
        range(1, len(text)), max_width, key=lambda count: math.ceil(font.getlength(_ends(text, count)))
    )
    return _ends(text, fitting)


def _ends(text: str, count: int) -> str:
    """The first and the last of *text*, *count* letters in all."""
    return f"{text[: count - count // 2].rstrip()}…{text[len(text) - count // 2 :].lstrip()}"


def _printable(text: str, font: ImageFont.FreeTypeFont) -> str:
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
