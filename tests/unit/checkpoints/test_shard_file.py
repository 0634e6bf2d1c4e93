"""A rank's file is plain safetensors, and whatever is wrong with its header is refused."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from pipeline.base.errors import DamageError
from pipeline.checkpoints.shard_file import FragmentRange, RankState, pack_header, parse_header

STATE = RankState(run="r", step=10, attempt="0001", rank=0, world_size=1, updates=10, shapes={"a": (2, 2), "b:c": (3,)})
PIECES = [FragmentRange("ema", "a", 0, 4), FragmentRange("weight", "a", 0, 4), FragmentRange("weight", "b:c", 0, 3)]
VALUES = torch.arange(11, dtype=torch.float32)


def file() -> bytes:
    return pack_header(STATE, PIECES) + VALUES.numpy().tobytes()


def test_the_library_reads_it() -> None:
    tensors = load(file())
    expected = {"ema:a:0": VALUES[:4], "weight:a:0": VALUES[4:8], "weight:b:c:0": VALUES[8:]}
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], values) for name, values in expected.items())


def test_what_was_packed_is_parsed() -> None:
    data = file()
    header = parse_header(data, len(data), "f")
    assert header.state == STATE
    begin = len(data) - 44
    assert header.offsets == dict(zip(PIECES, (begin, begin + 16, begin + 32), strict=True))
    assert begin % 8 == 0


def test_a_rank_may_have_nothing() -> None:
    data = pack_header(STATE, [])
    assert parse_header(data, len(data), "f").offsets == {}
    assert load(data) == {}


def test_equal_states_give_equal_bytes() -> None:
    assert file() == file()


def with_header(change: dict[str, Any], drop: tuple[str, ...] = ()) -> bytes:
    """The file with entries of its header changed or dropped."""
    data = file()
    length = struct.unpack("<Q", data[:8])[0]
    tree = json.loads(data[8 : 8 + length]) | change
    text = json.dumps({name: value for name, value in tree.items() if name not in drop}).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def row(start: int, end: int, **more: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]} | more


REFUSED = {
    "overlapping offsets": with_header({"weight:a:0": row(8, 24)}),
    "a gap": with_header({"weight:a:0": row(20, 32)}),
    "beyond the end": with_header({"weight:b:c:0": row(32, 48)}),
    "not to the end": with_header({"weight:b:c:0": row(32, 40)}),
    "negative": with_header({"ema:a:0": row(-16, 0)}),
    "shape of other size": with_header({"weight:a:0": row(16, 32, shape=[5])}),
    "two dimensions": with_header({"weight:a:0": row(16, 32, shape=[2, 2])}),
    "another dtype": with_header({"weight:a:0": row(16, 32, dtype="I32")}),
    "an entry more": with_header({"weight:a:0": row(16, 32, pickle="gASV")}),
    "a name without a start": with_header({"weight": row(16, 32)}, ("weight:a:0",)),
    "no state": with_header({"__metadata__": {}}),
    "a state of something else": with_header({"__metadata__": {"state": "{}"}}),
    "no metadata": with_header({}, ("__metadata__",)),
    "made by the library of other tensors": save({"x": torch.zeros(3)}),
    "offsets that are no numbers": with_header({"weight:a:0": row(16, 32, data_offsets=["0", None])}),
    "deep nesting": struct.pack("<Q", 20_000) + b"[" * 20_000,
    "no json": struct.pack("<Q", 8) + b"not json",
    "a header of 2^63 bytes": struct.pack("<Q", 1 << 63) + file()[8:],
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system" + bytes(64),
    "nothing": b"",
    "cut in its length": file()[:5],
    "cut in its header": file()[:100],
    "cut in its numbers": file()[:-4],
    "something behind": file() + b"\0\0\0\0",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_file_is_refused(name: str) -> None:
    data = REFUSED[name]
    with pytest.raises(DamageError, match="where it was"):
        parse_header(data, len(data), "where it was")


def test_a_name_that_stands_twice_is_refused() -> None:
    data = file()
    twice = data.replace(b'"weight:a:0"', b'"ema:a:0"   ')  # as long as before
    assert len(twice) == len(data)
    with pytest.raises(DamageError, match="twice"):
        parse_header(twice, len(twice), "f")


def test_a_flip_of_any_bit_of_the_header_raises_nothing_else() -> None:
    data, whole = file(), parse_header(file(), len(file()), "f")
    changed = 0
    for place in range(len(data) - 44):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            try:
                changed += parse_header(bytes(flipped), len(flipped), "f") != whole
            except DamageError:
                changed += 1
    assert changed > (len(data) - 60) * 7  # the rest are spaces that fill it up, and letters' case of nothing
