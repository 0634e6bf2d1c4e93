"""From a JPEG of 500 x 375 pixels to 224 x 224: what crops and resizes, and where the time of a sample goes.

CPU time of one thread, best of interleaved rounds. opencv-python-headless is measured where it is installed; it is no
dependency.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from pipeline.base.seeds import generator
from pipeline.images import transforms as resizing
from pipeline.images.decode import decode
from pipeline.images.transforms import Box, Pixels, crop_and_resize
from pipeline.stream.augment import OPERATIONS, augment, mirrored, random_box
from pipeline.stream.recipe import AugmentRecipe, RandAugmentRecipe
from tests.bench.pictures import imagenet_like

try:
    import cv2
except ImportError:
    cv2 = None

Crop = Callable[[Pixels, Box], Pixels]
Call = Callable[[int], Any]
_IMAGES, _ROUNDS, _SIZE = 100, 7, 224
_RECIPE = AugmentRecipe()


def section() -> str:
    """The three tables, as Markdown."""
    files = list(imagenet_like(_IMAGES, seed=1))
    pixels = [decode(data)[0] for data in files]
    return "\n".join([_crops(pixels), _samples(files, pixels), _operations(pixels)])


def _crops(pixels: Sequence[Pixels]) -> str:
    boxes = [random_box(*image.shape[:2], _RECIPE, generator(0, "box", at)) for at, image in enumerate(pixels)]
    exact = [_reference(image, box) for image, box in zip(pixels, boxes, strict=True)]
    calls = {name: partial(_at, crop, pixels, boxes) for name, crop in _libraries().items()}
    costs = _costs(calls)
    lines = [
        "| a part of 5-100 % to 224, bilinear | us an image | against Pillow | off float64: mean, most |",
        "|---|---|---|---|",
    ]
    for name, call in calls.items():
        off = [np.abs(call(at) - wanted) for at, wanted in enumerate(exact)]
        mean, most = np.mean([one.mean() for one in off]), max(one.max() for one in off)
        lines.append(f"| {name} | {costs[name]:.0f} | {costs['Pillow'] / costs[name]:.2f} | {mean:.2f}, {most:.0f} |")
    return "\n".join([*lines, "", _same_everywhere(pixels, boxes), ""])


def _libraries() -> dict[str, Crop]:
    def pillow(image: Pixels, box: Box) -> Pixels:
        part = Image.fromarray(_cut(image, box))
        return np.asarray(part.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR))

    def pillow_boxed(image: Pixels, box: Box) -> Pixels:
        return np.asarray(Image.fromarray(image).resize((_SIZE, _SIZE), Image.Resampling.BILINEAR, box=box))

    def opencv(image: Pixels, box: Box, flag: int) -> Pixels:
        return cv2.resize(_cut(image, box), (_SIZE, _SIZE), interpolation=flag)

    found: dict[str, Crop] = {"Pillow": pillow, "Pillow, box of the whole (looks beyond its edge)": pillow_boxed}
    found["vitpipe (cykooz-resizer)"] = lambda image, box: crop_and_resize(image, box, _SIZE, _SIZE, "bilinear")
    if cv2:
        cv2.setNumThreads(1)
        found["opencv, area (linear where it enlarges)"] = partial(opencv, flag=cv2.INTER_AREA)
        found["opencv, linear (not antialiased)"] = partial(opencv, flag=cv2.INTER_LINEAR)
    return found


def _same_everywhere(pixels: Sequence[Pixels], boxes: Sequence[Box]) -> str:
    """Whether the library that is used gives the same bytes with every set of vector instructions."""
    outs, plain = {}, resizing.resizer.Resizer
    for extension in resizing.resizer.CpuExtensions:
        limited = plain()
        with suppress(ValueError):
            limited.cpu_extensions = extension
            if limited.cpu_extensions != extension:  # not on this machine
                continue
            resizing.resizer.Resizer = lambda limited=limited: limited
            crops = (crop_and_resize(*one, _SIZE, _SIZE, "bilinear") for one in zip(pixels, boxes, strict=True))
            outs[extension.name] = b"".join(crop.tobytes() for crop in crops)
    resizing.resizer.Resizer = plain
    verdict = "the same bytes" if len(set(outs.values())) == 1 else "DIFFERENT bytes"
    return f"cykooz-resizer with vector instructions {', '.join(outs)}: {verdict}."


def _samples(files: Sequence[bytes], pixels: Sequence[Pixels]) -> str:
    strong = AugmentRecipe(randaugment=RandAugmentRecipe(layers=2, magnitude=15))
    still = AugmentRecipe(flip=False)
    small = [augment(image, still, 0, 0, str(at)) for at, image in enumerate(pixels)]
    batch = np.empty((_SIZE, _SIZE, 3), dtype=np.uint8)
    planar = np.empty((3, _SIZE, _SIZE), dtype=np.uint8)
    whole = "decode, crop, flip, into the batch"
    costs = _costs(
        {
            "draws alone (generator and box)": lambda at: random_box(375, 500, _RECIPE, generator(0, "augment", 0, at)),
            "decode": lambda at: decode(files[at]),
            "crop and resize, draws included": lambda at: augment(pixels[at], still, 0, 0, str(at)),
            "flip (of those that are flipped)": lambda at: mirrored(small[at]),
            "RandAugment (2, 15)": lambda at: augment(
                small[at], strong.model_copy(update={"crop": "none"}), 0, 0, str(at)
            ),
            "into the batch, (H, W, 3)": lambda at: np.copyto(batch, small[at]),
            "into the batch, (3, H, W)": lambda at: np.copyto(planar, small[at].transpose(2, 0, 1)),
            whole: lambda at: np.copyto(
                planar, augment(decode(files[at])[0], _RECIPE, 0, 0, str(at)).transpose(2, 0, 1)
            ),
            f"{whole}, by Pillow": lambda at: _by_pillow(files[at], at, planar),
        }
    )
    lines = ["| part of a sample | us |", "|---|---|", *(f"| {name} | {cost:.0f} |" for name, cost in costs.items())]
    ratio = costs[f"{whole}, by Pillow"] / costs[whole]
    return "\n".join([*lines, "", f"Against Pillow: {ratio:.2f} (target 1.3, with reading on both sides).", ""])


def _by_pillow(data: bytes, at: int, planar: Pixels) -> None:
    """What a pipeline of Pillow does, with the same draws."""
    draw = generator(0, "augment", 0, str(at))
    with Image.open(io.BytesIO(data)) as image:
        box = random_box(image.height, image.width, _RECIPE, draw)
        part = image.convert("RGB").crop(box).resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
    if draw.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    np.copyto(planar, np.asarray(part).transpose(2, 0, 1))


def _operations(pixels: Sequence[Pixels]) -> str:
    small = [crop_and_resize(image, (0, 0, 300, 300), _SIZE, _SIZE, "bilinear") for image in pixels]
    draw = np.random.default_rng(0)

    def call(at: int, name: str) -> Pixels:
        return OPERATIONS[name](small[at], 1.5, draw)

    costs = _costs({name: partial(call, name=name) for name in OPERATIONS})
    lines = ["| operation at magnitude 15, 224 x 224 | us |", "|---|---|"]
    lines += [f"| {name} | {cost:.0f} |" for name, cost in costs.items()]
    return "\n".join([*lines, f"| mean | {np.mean(list(costs.values())):.0f} |", ""])


def _costs(calls: dict[str, Call]) -> dict[str, float]:
    """CPU microseconds of each call, mean over the images, best of the rounds."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            started = time.process_time()
            for at in range(_IMAGES):
                call(at)
            best[name] = min(best[name], (time.process_time() - started) / _IMAGES * 1e6)
    return best


def _at(crop: Crop, pixels: Sequence[Pixels], boxes: Sequence[Box], at: int) -> Pixels:
    return crop(pixels[at], boxes[at])


def _cut(image: Pixels, box: Box) -> Pixels:
    return image[box[1] : box[3], box[0] : box[2]]


def _reference(image: Pixels, box: Box) -> Any:
    """The triangle filter over the part, widened where it shrinks, in float64, not rounded."""
    part = _cut(image, box).astype(np.float64)
    rows, columns = (_weights(size) for size in part.shape[:2])
    return np.einsum("yh,hwc,xw->yxc", rows, part, columns, optimize=True)


def _weights(size: int) -> Any:
    scale = size / _SIZE
    centres = (np.arange(_SIZE)[:, None] + 0.5) * scale
    weights = np.maximum(0.0, 1 - np.abs(np.arange(size) + 0.5 - centres) / max(scale, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    print(section())
