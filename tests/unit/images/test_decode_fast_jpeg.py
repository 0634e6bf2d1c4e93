"""The fast way through simplejpeg and the slow one through Pillow: the same pixels, the same verdicts."""

from __future__ import annotations

import io
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images import decode as module
from pipeline.images.decode import ImageFacts, ImageRejectedError, decode, read_header
from tests.support.jpegs import damaged, exif, jpegs, smooth
from tests.support.pictures import encoded

Outcome = tuple[Any, ...] | str


def outcome(data: bytes) -> Outcome:
    """Pixels and facts, or the reason."""
    try:
        pixels, facts = decode(data)
    except ImageRejectedError as error:
        return error.reason
    assert pixels.dtype == np.uint8
    return pixels.shape, pixels.tobytes(), facts


def by_pillow(data: bytes) -> Outcome:
    """The same with the fast way closed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "jpeg_header", lambda _: None)
        return outcome(data)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    """How many files the fast way took (True) and left to Pillow."""
    counts: Counter[bool] = Counter()
    real = module._decode_jpeg

    def counting(*arguments: Any) -> Any:
        pixels = real(*arguments)
        counts[pixels is not None] += 1
        return pixels

    monkeypatch.setattr(module, "_decode_jpeg", counting)
    return counts


def test_good_files_have_the_same_pixels_both_ways(taken: Counter[bool]) -> None:
    files = list(jpegs(300, seed=1))
    for data in files:
        assert outcome(data) == by_pillow(data)
        assert read_header(data) == decode(data)[1]
    assert taken[True] > 300
    assert taken[False] > 20  # CMYK


def test_damaged_files_have_the_same_verdict_both_ways(taken: Counter[bool]) -> None:
    draw, files, seen = random.Random(2), list(jpegs(100, seed=2)), Counter()
    for _ in range(3_000):
        data = damaged(draw.choice(files), draw)
        wanted = by_pillow(data)
        assert outcome(data) == wanted
        seen[wanted if isinstance(wanted, str) else "ok"] += 1
        if not isinstance(wanted, str):
            assert read_header(data) == wanted[2]
    assert seen["ok"] > 500
    assert seen["truncated"] > 500
    assert seen["not-an-image"] > 10
    assert taken[True] > 300


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, taken: Counter[bool]) -> None:
    upright = encoded(smooth(17, 30), "JPEG")
    data = encoded(smooth(17, 30), "JPEG", exif=exif(orientation))
    assert outcome(data) == by_pillow(data)
    assert taken == {True: 1}
    assert decode(data)[0].shape == ((17, 30, 3) if orientation < 5 else (30, 17, 3))
    assert sorted(decode(data)[0].flatten()) == sorted(decode(upright)[0].flatten())


def test_a_bomb_is_refused_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("pixels were allocated")

    data = bytearray(encoded(smooth(16, 16), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    monkeypatch.setattr(module.simplejpeg, "decode_jpeg", forbidden)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load_prepare", forbidden)
    for height, width in [(65_535, 1), (1, 65_535), (8_001, 8_000), (32_768, 32_768), (65_535, 65_535)]:
        data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        assert outcome(bytes(data)) == "too-large"
        assert by_pillow(bytes(data)) == "too-large"
        with pytest.raises(ImageRejectedError, match="too-large"):
            read_header(bytes(data))


def test_a_jpeg_with_more_pictures_behind_it_gives_the_first() -> None:
    first, second = smooth(20, 24, 1), smooth(20, 24, 2)
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=90)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert outcome(data) == by_pillow(data)
    assert outcome(data)[1] == decode(encoded(first, "JPEG", quality=90))[0].tobytes()
    assert read_header(data) == ImageFacts(24, 20, "jpg")


def test_the_size_is_told_before_the_pixels_are_decoded() -> None:
    for format_name in ("JPEG", "PNG"):
        told: list[int] = []
        data = encoded(smooth(6, 7), format_name)
        decode(data, told.append)
        assert told == [42]
        told.clear()
        with pytest.raises(ImageRejectedError):
            decode(data[:-30], told.append)
        assert set(told) == {42}
