"""The evaluation transform as others write it: preprocessor_config.json, timm's pretrained_cfg; and back.

One thing differs: where the aspect is kept and the longer side comes to a fraction of a pixel, it is rounded here and
cut off there and in torchvision, so it may be one pixel longer here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.base.errors import InputError
from pipeline.images.transforms import EvaluationTransform

HALF = (0.5, 0.5, 0.5)  # mean and std of pixels in [-1, 1]
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL.Image.Resampling


@dataclass(frozen=True)
class Input:
    """How a foreign model's input is made. ``transform`` None: not specified, or none that ``EvaluationTransform`` can
    express. ``is_specified``: a file named mean and standard deviation.
    """

    transform: EvaluationTransform | None = None
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    is_specified: bool = False


def default_transform(image_size: int) -> EvaluationTransform:
    """Short side to 8/7 of the crop (256 for 224), bicubic."""
    return EvaluationTransform(size=image_size, resize=round(image_size * 8 / 7), mode="short", filter="bicubic")


def to_preprocessor(transform: EvaluationTransform) -> dict[str, Any]:
    """preprocessor_config.json. ViTImageProcessor only resizes; with a crop it is BitImageProcessor's, as DINOv2's."""
    cropped = transform.mode == "short" or transform.resize != transform.size
    side = transform.resize
    tree: dict[str, Any] = {
        "image_processor_type": "BitImageProcessor" if cropped else "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if transform.mode == "short" else {"height": side, "width": side},
        "resample": _RESAMPLE[transform.filter],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(HALF),
        "image_std": list(HALF),
    }
    if cropped:
        tree |= {"do_center_crop": True, "crop_size": {"height": transform.size, "width": transform.size}}
    return tree


def from_preprocessor(tree: Mapping[str, Any], image_size: int) -> Input:
    """Of preprocessor_config.json. Raises InputError for statistics that are none."""
    mean, std = _statistics(tree.get("image_mean"), tree.get("image_std"))
    if not tree.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    size, crop = tree.get("size"), tree.get("crop_size")
    cropped = bool(tree.get("do_center_crop", False)) and crop is not None
    fields: dict[str, Any] = {
        "size": _side(crop) if cropped else image_size,
        "filter": _filter(tree.get("resample", 2)),
    }
    if isinstance(size, dict) and "shortest_edge" in size:
        fields |= {"mode": "short", "resize": size["shortest_edge"]}
    else:
        fields |= {"mode": "square", "resize": _side(size)}
    return Input(_transform(fields, image_size), mean, std, is_specified=True)


def to_pretrained(transform: EvaluationTransform) -> dict[str, Any]:
    """The part of timm's pretrained_cfg about input. ``squash`` resizes both sides, ``center`` keeps the aspect."""
    return {
        "interpolation": transform.filter,
        "crop_pct": transform.size / transform.resize,
        "crop_mode": "squash" if transform.mode == "square" else "center",
        "mean": list(HALF),
        "std": list(HALF),
    }


def from_pretrained(tree: Mapping[str, Any], image_size: int) -> Input:
    """Of timm's pretrained_cfg, with timm's defaults for what is left out; an empty one specifies nothing."""
    if not tree:
        return Input()
    mean, std = _statistics(tree.get("mean"), tree.get("std"))
    mode = {"center": "short", "squash": "square"}.get(str(tree.get("crop_mode", "center")))
    share = tree.get("crop_pct", 0.875)
    is_share = isinstance(share, int | float) and 0.01 < share <= 1
    resize = math.floor(image_size / share) if is_share else 0  # as timm rounds; 0: no transform
    fields = {"size": image_size, "resize": resize, "mode": mode, "filter": tree.get("interpolation", "bicubic")}
    return Input(_transform(fields, image_size), mean, std, is_specified=bool(tree.get("mean")))


def _statistics(mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both, per channel; a half where there is none."""
    means, deviations = (HALF if values is None else values for values in (mean, std))
    if not (_is_channels(means) and _is_channels(deviations)) or min(deviations) <= 0:
        raise InputError(f"mean {mean} and standard deviation {std} of pixels are not three numbers each")
    return tuple(map(float, means)), tuple(map(float, deviations))


def _is_channels(values: Any) -> bool:
    """Three finite numbers."""
    numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
    return numbers and len(values) == 3 and all(math.isfinite(value) for value in values)


def _side(size: Any) -> Any:
    """The side of a square, 0 (which no transform has) for anything else."""
    if isinstance(size, dict):
        return size.get("height") if size.get("height") == size.get("width") else 0
    return size


def _filter(number: Any) -> str:
    return next((name for name, known in _RESAMPLE.items() if known == number), "")


def _transform(fields: dict[str, Any], image_size: int) -> EvaluationTransform | None:
    try:
        transform = EvaluationTransform.model_validate(fields)
    except ValidationError:
        return None
    return transform if transform.size == image_size else None
