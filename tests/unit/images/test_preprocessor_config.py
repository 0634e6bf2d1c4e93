"""The evaluation transform as transformers and timm write it, and back."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.base.errors import InputError
from pipeline.images.preprocessor_config import (
    HALF,
    Input,
    default_transform,
    from_preprocessor,
    from_pretrained,
    to_preprocessor,
    to_pretrained,
)
from pipeline.images.transforms import EvaluationTransform

TRANSFORMS = [
    EvaluationTransform(size=size, resize=resize, mode=mode, filter=kind)
    for size, resize in ((224, 256), (224, 224), (384, 384), (16, 19), (224, 225), (28, 32))
    for mode in ("square", "short")
    for kind in ("bilinear", "bicubic")
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_out_and_in_again_is_the_same(transform: EvaluationTransform) -> None:
    assert from_preprocessor(to_preprocessor(transform), transform.size) == Input(
        transform, HALF, HALF, is_specified=True
    )
    assert from_pretrained(to_pretrained(transform), transform.size) == Input(transform, HALF, HALF, is_specified=True)


def test_published_files_are_understood() -> None:
    # google/vit-base-patch16-224, preprocessor_config.json
    old = {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224}
    assert from_preprocessor(old, 224).transform == EvaluationTransform(
        size=224, resize=224, mode="square", filter="bilinear"
    )
    # timm/vit_base_patch16_224.augreg_in21k, pretrained_cfg of its config.json
    timm = {"interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", "mean": [0.5] * 3, "std": [0.5] * 3}
    assert from_pretrained(timm, 224).transform == EvaluationTransform(
        size=224, resize=248, mode="short", filter="bicubic"
    )


def test_what_is_not_ours_is_left_open() -> None:
    transform = TRANSFORMS[0]
    tree, cfg = to_preprocessor(transform), to_pretrained(transform)
    for change in ({"resample": 1}, {"size": {"height": 9, "width": 8}}, {"size": {"longest_edge": 9}}):
        assert from_preprocessor(tree | change, 224).transform is None
    assert from_preprocessor(tree, 384).transform is None
    for change in ({"crop_mode": "border"}, {"interpolation": "random"}, {"crop_pct": 0}, {"crop_pct": 1.2}):
        assert from_pretrained(cfg | change, 224).transform is None
    assert from_pretrained({}, 224) == Input()
    assert from_preprocessor(tree | {"do_normalize": False}, 224).std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("odd", [[], [1], ["a", "b", "c"], 3, {}, [0, 0, 0], [1, 1, float("inf")], [[1], 2, 3], "abc"])
def test_a_normalisation_that_cannot_be_is_refused(odd: Any) -> None:
    with pytest.raises(InputError, match="not three numbers each"):
        from_preprocessor(to_preprocessor(TRANSFORMS[0]) | {"image_std": odd}, 224)
    with pytest.raises(InputError, match="not three numbers each"):
        from_pretrained(to_pretrained(TRANSFORMS[0]) | {"std": odd}, 224)


def test_anything_else_odd_is_read_or_left_open() -> None:
    for name in (*to_preprocessor(TRANSFORMS[0]), *to_pretrained(TRANSFORMS[0])):
        if "mean" in name or "std" in name:
            continue
        for odd in (None, [], {}, "x", -1, 2.5, True, float("nan"), 10**30, [1, 2], {"height": []}):
            from_preprocessor(to_preprocessor(TRANSFORMS[0]) | {name: odd}, 224)
            from_pretrained(to_pretrained(TRANSFORMS[0]) | {name: odd}, 224)


def test_the_usual_transform_is_the_papers() -> None:
    assert default_transform(224) == EvaluationTransform(size=224, resize=256, mode="short", filter="bicubic")
    assert default_transform(1).resize >= 1
