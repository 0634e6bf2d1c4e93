"""Libraries that decode, resize and encode ImageNet-like JPEGs, one thread each; and what the sandbox costs.

``python -m tests.bench.decoding`` prints both tables. opencv and imagecodecs are measured where they are
installed, as `make bench` does; the product does without them.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.images.check import CheckOptions, channel_sums, check_image, pixels_digest
from pipeline.images.decode import decode, read_header
from pipeline.images.sandbox import Sandbox
from pipeline.images.transforms import fast_resize, resize
from tests.bench.pictures import imagenet_like
from tests.bench.row import Row
from tests.bench.row import table as rows_table

try:
    import cv2
except ImportError:
    cv2 = None
try:
    import imagecodecs
except ImportError:
    imagecodecs = None

Call = Callable[[Any], Any]
_IMAGES, _ROUNDS = 100, 3
_QUALITY = 95


@dataclass(frozen=True)
class LibraryRow:
    """One library at one work. *ratio* is its speed over Pillow's in the same run."""

    work: str
    library: str
    per_second: float
    ratio: float
    note: str


def measure() -> list[LibraryRow]:
    """Best of interleaved rounds, by CPU time."""
    files = list(imagenet_like(_IMAGES, seed=1))
    pixels = [decode(data)[0] for data in files]
    small = [resize(image, *_short(image), "bicubic") for image in pixels]
    return [
        *_compare("decode to RGB", _decoders(), files, _strictness(files[0])),
        *_compare("short side to 256", _resizers(_short, None), pixels, {}),
        *_compare("a crop to 224", _resizers(lambda _: (224, 224), (40, 30, 300, 300)), pixels, {}),
        *_compare(f"encode, quality {_QUALITY}, 4:2:0", _encoders(), small, {}),
        *_compare("check", _checks(pixels), list(range(_IMAGES)), {}, files),
    ]


def table(rows: Sequence[LibraryRow]) -> str:
    """As Markdown."""
    head = "| work | library | images/s | against Pillow | note |\n|---|---|---|---|---|\n"
    return head + "".join(
        f"| {row.work} | {row.library} | {row.per_second:.0f} | {row.ratio:.2f} | {row.note} |\n" for row in rows
    )


def section() -> str:
    """What BENCHMARKS.md shows."""
    return f"{table(measure())}\n{rows_table(overhead())}"


def overhead() -> list[Row]:
    """The sandbox against a bare loop of the same checks in this process: time passed, and CPU of both processes."""
    files = list(imagenet_like(_IMAGES, seed=2)) * 5
    options, rows = CheckOptions(), []
    with Sandbox(options) as sandbox:
        list(sandbox.check(enumerate(files[:_IMAGES])))
        passed, used, bare = [], [], []
        for _ in range(_ROUNDS):
            started, cpu = time.perf_counter(), _cpu_seconds(sandbox.pid)
            for _tag, _data, _result in sandbox.check(enumerate(files)):
                pass
            passed.append(time.perf_counter() - started)
            used.append(_cpu_seconds(sandbox.pid) - cpu)
            started = time.process_time()
            for data in files:
                check_image(data, options)
            bare.append(time.process_time() - started)
    for what, mine in (("time", min(passed)), ("CPU", min(used))):
        ours_rate, peer_rate = len(files) / mine, len(files) / min(bare)
        text = f"full check in the sandbox against a bare loop of decoding, by {what}"
        rows.append(Row(text, f"{ours_rate:.0f} images/s", f"{peer_rate:.0f} images/s", ours_rate / peer_rate))
    return rows


def _cpu_seconds(pid: int | None) -> float:
    """Of this process and of *pid*, from the scheduler's count of nanoseconds."""
    total = 0
    for process in (os.getpid(), pid):
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/schedstat") as file:
                total += int(file.read().split()[0])
    return total / 1e9


def _compare(
    work: str, calls: dict[str, Call], items: Sequence[Any], notes: dict[str, str], files: Sequence[bytes] = ()
) -> list[LibraryRow]:
    if files:  # the peer is a full decode by Pillow
        calls = {"Pillow, decode alone": lambda number: _pillow(files[number])} | {
            name: (lambda number, call=call: call(number, files)) for name, call in calls.items()
        }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            started = time.process_time()
            for item in items:
                call(item)
            best[name] = min(best[name], (time.process_time() - started) / len(items))
    peer = next(iter(best.values()))
    return [LibraryRow(work, name, 1 / cost, peer / cost, notes.get(name, "")) for name, cost in best.items()]


def _pillow(data: bytes) -> Any:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.load()
        return np.asarray(image)


def _decoders() -> dict[str, Call]:
    calls: dict[str, Call] = {"Pillow": _pillow, "simplejpeg": simplejpeg.decode_jpeg}
    if cv2:
        cv2.setNumThreads(1)
        calls["opencv"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if imagecodecs:
        calls["imagecodecs"] = imagecodecs.jpeg8_decode
    calls["vitpipe (simplejpeg, its header read first)"] = lambda data: decode(data)[0]
    return calls


def _strictness(data: bytes) -> dict[str, str]:
    """Whether each decoder gives Pillow's pixels, and what it makes of a file cut at nine tenths."""
    notes = {}
    for name, call in _decoders().items():
        same = "Pillow's pixels" if np.array_equal(call(data), _pillow(data)) else "other pixels"
        try:
            refused = call(data[: len(data) * 9 // 10]) is None
        except Exception:
            refused = True
        notes[name] = f"{same}; {'refuses' if refused else 'ACCEPTS'} a cut file"
    return notes


def _short(image: Any) -> tuple[int, int]:
    height, width = image.shape[:2]
    return round(width * 256 / min(width, height)), round(height * 256 / min(width, height))


def _resizers(size: Callable[[Any], tuple[int, int]], box: tuple[int, int, int, int] | None) -> dict[str, Call]:
    def part(image: Any) -> Any:
        return image if box is None else image[box[1] : box[3], box[0] : box[2]]

    kinds = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR, "box": Image.Resampling.BOX}
    calls: dict[str, Call] = {}
    for name, kind in kinds.items():
        calls[f"Pillow, {name}"] = lambda image, kind=kind: np.asarray(
            Image.fromarray(image).resize(size(image), kind, box=box)
        )
    for name in (*kinds, "lanczos"):
        calls[f"cykooz-resizer, {name}"] = lambda image, name=name: fast_resize(part(image), *size(image), name)
    if cv2:
        peers = {"area": cv2.INTER_AREA, "linear, no antialiasing": cv2.INTER_LINEAR}
        for name, flag in peers.items():
            calls[f"opencv, {name}"] = lambda image, flag=flag: cv2.resize(part(image), size(image), interpolation=flag)
    return calls


def _encoders() -> dict[str, Call]:
    def pillow(image: Any) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY, subsampling=2)
        return buffer.getvalue()

    def opencv(image: Any) -> bytes:
        turned = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", turned, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()

    calls: dict[str, Call] = {"Pillow": pillow}
    calls["simplejpeg"] = lambda image: simplejpeg.encode_jpeg(image, _QUALITY, colorsubsampling="420")
    if cv2:
        calls["opencv"] = opencv
    if imagecodecs:
        calls["imagecodecs"] = lambda image: imagecodecs.jpeg8_encode(image, level=_QUALITY)
    return calls


def _checks(pixels: Sequence[Any]) -> dict[str, Callable[[int, Sequence[bytes]], Any]]:
    """The parts of vitpipe's own check, each alone."""
    return {
        "header": lambda number, files: read_header(files[number]),
        "full decode": lambda number, files: check_image(files[number], CheckOptions()),
        "statistics of pixels": lambda number, _: channel_sums(pixels[number]),
        "digest of pixels": lambda number, _: pixels_digest(pixels[number]),
    }


if __name__ == "__main__":
    print(table(measure()))
    for row in overhead():
        print(f"| {row.what} | {row.ours} | {row.peer} | {row.ratio:.2f} |")
