"""Training augmentation: random crop and flip, then RandAugment. Every draw comes from (seed, epoch, sample key): never
from rank, worker or time.

The order of the draws is fixed: the crop's, one for the flip, then RandAugment's. The flip's is drawn in any case, so
turning flip or RandAugment on or off leaves the crop as it was, and turning flip leaves RandAugment's operations.

RandAugment (arXiv 1909.13719) is big_vision's ``randaug``, on uint8 (H, W, 3). Each layer draws one of 16 operations,
all equally likely, and applies it at the recipe's magnitude. Operations and arguments are those of
google-research/big_vision, pp/archive/autoaugment.py (``distort_image_with_randaugment``; pp/archive/randaug.py calls
it), forked from tensorflow/tpu, models/official/efficientnet/autoaugment.py: magnitudes are parts of 10, not clipped;
what comes in from outside is grey 128; a side or a turn is as likely as its opposite.

It is kept as it behaves there, since published accuracies rest on that, where its authors may have meant otherwise:

- Contrast blends with H W / 256 (196 at 224 pixels), not with the mean brightness.
- Solarize's threshold wraps around at 256, so magnitudes 0, 10 and 20 invert all (google-research/big_vision#110).
- Posterize keeps more bits the stronger it is (tensorflow/tpu#614), and one bit at magnitude 0, where the shift by 8 is
  held at 7 (tensorflow, core/kernels/cwise_ops.h, ``right_shift_op``).

Sums are in integers, blends in float32 without fused operations, geometry in Pillow's fixed point: the same pixels on
every machine. They differ from TensorFlow's by a step where its float32 falls just below a whole number, and in the
nearest neighbour where two are equally near.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.base.seeds import generator
from pipeline.images.transforms import Box, Pixels, crop_and_resize
from pipeline.stream.recipe import AugmentRecipe, RandAugmentRecipe

Operation = Callable[[Pixels, float, np.random.Generator], Pixels]  # pixels, magnitude / 10, draws

_TRIES = 10  # draws of a box that fits before falling back to the whole image, as torchvision and tf do
_MAX_LEVEL = 10.0  # magnitudes are parts of it
_GREY = (128, 128, 128)
_VALUES: Pixels = np.arange(256, dtype=np.uint8)
_MIDDLE = 128  # SolarizeAdd changes pixels below it


def augment(pixels: Pixels, recipe: AugmentRecipe, seed: int, epoch: int, key: str) -> Pixels:
    """uint8 (H, W, 3) -> uint8 (size, size, 3), contiguous, perhaps read-only or *pixels* itself."""
    draw = generator(seed, "augment", epoch, key)
    out = _cropped(pixels, recipe, draw)
    if draw.random() < 0.5 and recipe.flip:
        out = mirrored(out)
    return randaugment(out, recipe.randaugment, draw)


def random_box(height: int, width: int, recipe: AugmentRecipe, draw: np.random.Generator) -> Box:
    """(left, top, right, bottom) of a part with area in [area_min, 1] and a log-uniform aspect ratio."""
    for _ in range(_TRIES):
        area = height * width * draw.uniform(recipe.area_min, 1.0)
        aspect = math.exp(draw.uniform(-math.log(recipe.aspect_max), math.log(recipe.aspect_max)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(0, width - w + 1)), int(draw.integers(0, height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def mirrored(pixels: Pixels) -> Pixels:
    """*pixels* (H, W, 3) with left and right exchanged, contiguous."""
    out = np.empty_like(pixels, order="C")
    for channel in range(3):  # a quarter of the time of copying three bytes at a time
        out[..., channel] = pixels[:, ::-1, channel]
    return out


def _cropped(pixels: Pixels, recipe: AugmentRecipe, draw: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    box = random_box(height, width, recipe, draw) if recipe.crop == "resized" else (0, 0, width, height)
    scaled = crop_and_resize(pixels, box, recipe.size, recipe.size, recipe.filter)
    return _shifted(scaled, recipe.padding, draw) if recipe.crop == "padded" else scaled


def _shifted(pixels: Pixels, padding: int, draw: np.random.Generator) -> Pixels:
    """*pixels* (S, S, 3) shifted by up to *padding* each way; what comes in from outside is black."""
    dy, dx = (int(value) for value in draw.integers(-padding, padding + 1, size=2))
    out = np.zeros_like(pixels)
    size = len(pixels)
    out[max(0, dy) : size + min(0, dy), max(0, dx) : size + min(0, dx)] = pixels[
        max(0, -dy) : size + min(0, -dy), max(0, -dx) : size + min(0, -dx)
    ]
    return out


def randaugment(pixels: Pixels, recipe: RandAugmentRecipe, draw: np.random.Generator) -> Pixels:
    """uint8 (H, W, 3) -> the same shape. *pixels* is not written to, and is the result when there are no layers.

    Each layer draws the number of its operation, then what that needs: a sign, or Cutout's row and column.
    """
    names = list(OPERATIONS)
    for _ in range(recipe.layers):
        name = names[int(draw.integers(len(names)))]
        pixels = OPERATIONS[name](pixels, recipe.magnitude / _MAX_LEVEL, draw)
    return pixels


def autocontrast(pixels: Pixels) -> Pixels:
    """Each channel stretched to 0..255; one of a single value stays."""
    image, table = Image.fromarray(pixels), []
    extrema: list[tuple[int, int]] = [image.getchannel(number).getextrema() for number in range(3)]  # type: ignore[misc]
    values = _VALUES.astype(np.int64)
    for low, high in extrema:
        stretched = np.clip((values - low) * 255 // (high - low), 0, 255) if high > low else values
        table += stretched.tolist()
    return _array(image.point(table))


def equalize(pixels: Pixels) -> Pixels:
    """Each channel's histogram made flat: Pillow's own, of which TensorFlow's is a copy."""
    return _array(ImageOps.equalize(Image.fromarray(pixels)))


def invert(pixels: Pixels) -> Pixels:
    """255 - v."""
    return ~pixels


def posterize(pixels: Pixels, bits: int) -> Pixels:
    """The *bits* upper bits are kept: at least one, and all from 8 on."""
    num_bits = min(max(bits, 1), 8)
    return pixels & np.uint8(256 - (1 << 8 - num_bits))


def solarize(pixels: Pixels, threshold: int) -> Pixels:
    """255 - v where v is at least *threshold*."""
    return _looked_up(pixels, np.where(threshold > _VALUES, _VALUES, ~_VALUES))


def solarize_add(pixels: Pixels, addition: int) -> Pixels:
    """v + *addition*, at most 255, where v is below 128."""
    added = np.minimum(_VALUES.astype(np.int64) + addition, 255)
    return _looked_up(pixels, np.where(_VALUES < _MIDDLE, added, _VALUES))


def color(pixels: Pixels, factor: float) -> Pixels:
    """Blended with its own grey: 0 is grey, 1 the picture, more is more colourful."""
    planes = [np.ascontiguousarray(pixels[..., channel]) for channel in range(3)]
    red, green, blue = (plane.astype(np.int32) for plane in planes)
    weighted = red * 2989 + green * 5870 + blue * 1140
    grey = weighted * 511 // 5_100_000  # in ten thousands, times 255.5 / 255: how TensorFlow converts back to uint8
    out = np.empty_like(pixels)
    for channel, plane in enumerate(planes):
        out[..., channel] = _blended(grey, plane, factor)
    return out


def contrast(pixels: Pixels, factor: float) -> Pixels:
    """Blended with one grey, which depends on the size of the picture alone (see the module)."""
    height, width = pixels.shape[:2]
    grey = np.asarray(min(height * width // 256, 255))
    return _looked_up(pixels, _blended(grey, _VALUES, factor))


def brightness(pixels: Pixels, factor: float) -> Pixels:
    """Blended with black."""
    return _looked_up(pixels, _blended(np.asarray(0), _VALUES, factor))


def sharpness(pixels: Pixels, factor: float) -> Pixels:
    """Blended with itself smoothed by ((1, 1, 1), (1, 5, 1), (1, 1, 1)) / 13, but for the outermost pixels."""
    wide = pixels.astype(np.uint16)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    smooth = pixels.copy()
    smooth[1:-1, 1:-1] = total // 13
    return _blended(smooth, pixels, factor)


def rotate(pixels: Pixels, degrees: float) -> Pixels:
    """About its centre, against the clock; nearest neighbour."""
    return _array(Image.fromarray(pixels).rotate(degrees, Image.Resampling.NEAREST, fillcolor=_GREY))


def shear_x(pixels: Pixels, level: float) -> Pixels:
    """Row y moves to the left by *level* y."""
    return _moved(pixels, (1.0, level, -0.5 * level, 0.0, 1.0, 0.0))  # from centres of pixels to their numbers


def shear_y(pixels: Pixels, level: float) -> Pixels:
    """Column x moves up by *level* x."""
    return _moved(pixels, (1.0, 0.0, 0.0, level, 1.0, -0.5 * level))


def translate_x(pixels: Pixels, distance: float) -> Pixels:
    """To the left by *distance* pixels."""
    return _moved(pixels, (1.0, 0.0, distance, 0.0, 1.0, 0.0))


def translate_y(pixels: Pixels, distance: float) -> Pixels:
    """Up by *distance* pixels."""
    return _moved(pixels, (1.0, 0.0, 0.0, 0.0, 1.0, distance))


def cutout(pixels: Pixels, reach: int, row: int, column: int) -> Pixels:
    """A grey square of twice *reach* about (*row*, *column*), as much of it as lies inside."""
    out = pixels.copy()
    out[max(0, row - reach) : row + reach, max(0, column - reach) : column + reach] = _GREY
    return out


def _random_cutout(pixels: Pixels, level: float, draw: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    row, column = int(draw.integers(height)), int(draw.integers(width))
    return cutout(pixels, int(level * 40), row, column)


def _enhancement(level: float) -> float:
    return level * 1.8 + 0.1


def _signed(value: float, draw: np.random.Generator) -> float:
    return value if draw.random() < 0.5 else -value


def _looked_up(pixels: Pixels, table: NDArray[np.integer]) -> Pixels:
    """*table* (256,) at each value. By bytes, which takes half the time of numpy's indexing."""
    data = pixels.tobytes().translate(table.astype(np.uint8).tobytes())
    return np.frombuffer(data, dtype=np.uint8).reshape(pixels.shape)


def _blended(plain: NDArray[np.integer], pixels: Pixels, factor: float) -> Pixels:
    """From *plain* (0) by way of *pixels* (1) and on, cut off to uint8."""
    start = plain.astype(np.float32)
    blend = pixels.astype(np.float32) - start
    blend *= np.float32(factor)
    blend += start
    return np.clip(blend, 0.0, 255.0, out=blend).astype(np.uint8)


def _moved(pixels: Pixels, matrix: tuple[float, ...]) -> Pixels:
    """Pixel (x, y) comes from *matrix* times (x, y, 1), both counted from pixels' centres; nearest neighbour."""
    image = Image.fromarray(pixels)
    moved = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=_GREY)
    return _array(moved)


def _array(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.uint8)


# By name, in the order of their numbers: picture, magnitude / 10, draws -> picture
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda pixels, level, draw: autocontrast(pixels),
    "Equalize": lambda pixels, level, draw: equalize(pixels),
    "Invert": lambda pixels, level, draw: invert(pixels),
    "Rotate": lambda pixels, level, draw: rotate(pixels, _signed(level * 30, draw)),
    "Posterize": lambda pixels, level, draw: posterize(pixels, int(level * 4)),
    "Solarize": lambda pixels, level, draw: solarize(pixels, int(level * 256) % 256),
    "Color": lambda pixels, level, draw: color(pixels, _enhancement(level)),
    "Contrast": lambda pixels, level, draw: contrast(pixels, _enhancement(level)),
    "Brightness": lambda pixels, level, draw: brightness(pixels, _enhancement(level)),
    "Sharpness": lambda pixels, level, draw: sharpness(pixels, _enhancement(level)),
    "ShearX": lambda pixels, level, draw: shear_x(pixels, _signed(level * 0.3, draw)),
    "ShearY": lambda pixels, level, draw: shear_y(pixels, _signed(level * 0.3, draw)),
    "TranslateX": lambda pixels, level, draw: translate_x(pixels, _signed(level * 100, draw)),
    "TranslateY": lambda pixels, level, draw: translate_y(pixels, _signed(level * 100, draw)),
    "Cutout": _random_cutout,
    "SolarizeAdd": lambda pixels, level, draw: solarize_add(pixels, int(level * 110)),
}
