"""Sizes, bytes that are the same each time, no metadata."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import Any

import cykooz_resizer
import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import RefusedError
from pipeline.images import check as module
from pipeline.images.check import Reencode, reencode, target_size
from pipeline.images.decode import ImageRejectedError, decode
from tests.support.jpegs import smooth
from tests.support.pictures import noise


@pytest.mark.parametrize(
    ("options", "size", "wanted"),
    [
        ({"mode": "short", "size": 256}, (500, 375), (341, 256)),
        ({"mode": "short", "size": 256}, (375, 500), (256, 341)),
        ({"mode": "short", "size": 256}, (300, 200), (300, 200)),
        ({"mode": "short", "size": 256, "enlarge": True}, (300, 200), (384, 256)),
        ({"mode": "area", "size": 100}, (400, 100), (200, 50)),
        ({"mode": "area", "size": 100}, (50, 50), (50, 50)),
        ({"mode": "area", "size": 100, "enlarge": True}, (50, 50), (100, 100)),
        ({"mode": "area", "size": 2}, (32_000, 1), (358, 1)),
        ({"mode": "square", "size": 64}, (500, 375), (64, 64)),
        ({"mode": "square", "size": 64}, (500, 30), (30, 30)),
        ({"mode": "square", "size": 64, "enlarge": True}, (500, 30), (64, 64)),
    ],
)
def test_sizes(options: dict[str, Any], size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert target_size(*size, Reencode(**options)) == wanted
    if size[0] < 1000:
        data, facts = reencode(noise(size[1], size[0]), Reencode(**options))
        assert (facts.width, facts.height) == wanted
        assert decode(data)[1] == facts


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_the_same_bytes_each_time_and_no_metadata(kind: Any) -> None:
    pixels = np.asarray(smooth(60, 90))
    recipe = Reencode(mode="short", size=32, format=kind)
    data, facts = reencode(pixels, recipe)
    assert data == reencode(pixels.copy(), recipe)[0]
    assert facts.format == kind
    image = Image.open(io.BytesIO(data))
    assert not image.getexif()
    assert set(image.info) <= {
        "jfif",
        "jfif_version",
        "jfif_unit",
        "jfif_density",
        "loop",
        "background",
        "timestamp",
        "duration",
    }


def test_the_same_bytes_with_and_without_vector_instructions() -> None:
    code = """if True:
        import hashlib, numpy as np
        from pipeline.images.check import Reencode, reencode
        pixels = np.random.default_rng(0).integers(0, 256, (333, 251, 3), dtype=np.uint8)
        for mode in ("short", "area", "square"):
            print(hashlib.sha256(reencode(pixels, Reencode(mode=mode, size=97))[0]).hexdigest())
    """
    environments = [{}, {"JSIMD_FORCENONE": "1"}, {"JSIMD_FORCESSE2": "1"}]
    outputs = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | more, check=True, capture_output=True).stdout
        for more in environments
    ]
    assert len(outputs[0].split()) == 3
    assert outputs == [outputs[0]] * 3


@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic", "lanczos", "box"])
def test_resizing_is_the_same_bit_by_bit_on_every_machine(filter_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(31, 47, 10, 13), (200, 300, 64, 96), (5, 5, 50, 40), (300, 7, 20, 7)]
    real, results = cykooz_resizer.Resizer, []
    for extension in ("none", "sse4_1", "avx2"):

        def resizer(name: str = extension) -> Any:
            made = real()
            made.cpu_extensions = getattr(cykooz_resizer.CpuExtensions, name)
            return made

        try:
            resizer()
        except ValueError:
            continue
        monkeypatch.setattr(module.resizer, "Resizer", resizer)
        images = [noise(height, width, 3) // 128 * 255 for height, width, _, _ in sizes]
        results.append(
            [
                module.fast_resize(image, new[3], new[2], filter_name).tobytes()
                for image, new in zip(images, sizes, strict=True)
            ]
        )
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(("filter_name", "pillow"), [("bilinear", 2), ("bicubic", 3), ("lanczos", 1), ("box", 4)])
def test_the_filters_are_what_they_are_called(filter_name: str, pillow: int) -> None:
    picture = smooth(90, 120)
    ours = module.fast_resize(np.asarray(picture), 50, 40, filter_name).astype(int)
    theirs = np.asarray(picture.resize((50, 40), Image.Resampling(pillow))).astype(int)
    assert np.abs(ours - theirs).max() <= 3


def test_quality_counts_and_colour_is_at_half_size() -> None:
    pixels = np.asarray(smooth(64, 64))
    low, high = (reencode(pixels, Reencode(mode="short", size=64, quality=quality))[0] for quality in (50, 95))
    assert len(low) < len(high)
    image: Any = Image.open(io.BytesIO(high))
    assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]


def test_png_loses_nothing() -> None:
    pixels = noise(20, 30)
    data, _ = reencode(pixels, Reencode(mode="short", size=20, format="png"))
    np.testing.assert_array_equal(decode(data)[0], pixels)


@pytest.mark.parametrize(
    ("recipe", "shape"),
    [
        (Reencode(mode="short", size=256, enlarge=True), (1, 200)),  # 51,200 wide
        (Reencode(mode="square", size=8_001, enlarge=True), (2, 2)),
        (Reencode(mode="short", size=1, format="webp"), (1, 16_384)),
    ],
)
def test_a_result_that_is_too_large_is_rejected(recipe: Reencode, shape: tuple[int, int]) -> None:
    with pytest.raises(ImageRejectedError, match="too-large"):
        reencode(noise(*shape), recipe)


def test_without_the_resizer_it_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resizer", None)
    with pytest.raises(RefusedError, match="pip install cykooz-resizer"):
        reencode(noise(9, 9), Reencode(mode="short", size=4))
