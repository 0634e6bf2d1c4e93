"""Every named size has exactly the published number of parameters; nothing is allocated to count them."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from pipeline.models.config import SIZES, ViTConfig, config_by_name
from pipeline.models.vit import ViT

PUBLISHED = {
    "Ti/16": 5_717_416,
    "S/16": 22_050_664,
    "S/32": 22_878_952,
    "B/16": 86_567_656,
    "B/32": 88_224_232,
    "L/16": 304_326_632,
    "L/32": 306_535_400,
    "H/14": 632_045_800,
    "g/14": 1_012_611_432,
    "G/14": 1_844_440_680,
}


@pytest.mark.parametrize(("name", "expected"), PUBLISHED.items())
def test_a_named_size_has_the_published_parameter_count(name: str, expected: int) -> None:
    with torch.device("meta"):
        model = ViT(config_by_name(name, num_classes=1000))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_every_size_is_counted() -> None:
    assert {name.partition("/")[0] for name in PUBLISHED} == set(SIZES)


@pytest.mark.parametrize("name", ["XL/16", "B", "B/", "B/x", "b/16", ""])
def test_an_unknown_name_tells_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"no model .*Ti, S, B, L, H, g, G"):
        config_by_name(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": 15}, "patch_size 15 does not divide image_size 224"),
        ({"heads": 5}, "heads 5 does not divide width 768"),
        ({"width": 6, "heads": 3, "position": "sincos2d"}, "divisible by 4, not 6"),
        ({"dropout": 1.0}, "less than 1"),
        ({"drop_path": 1.0}, "less than 1"),
        ({"norm_epsilon": 0.0}, "greater than 0"),
        ({"num_classes": -1}, "greater than or equal to 0"),
        ({"position_std": float("nan")}, "finite number"),
    ],
)
def test_an_impossible_shape_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ViTConfig.model_validate(change)


@pytest.mark.parametrize(
    ("name", "pool", "tokens"), [("B/16", "cls", 197), ("B/16", "gap", 196), ("H/14", "cls", 257), ("B/32", "cls", 50)]
)
def test_tokens_of_an_image(name: str, pool: str, tokens: int) -> None:
    assert config_by_name(name, pool=pool).num_tokens == tokens
