"""Position embeddings at another resolution equal what the paper's code does, scipy's zoom of order 1."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from pydantic import ValidationError

from pipeline.models.config import ViTConfig
from pipeline.models.layers import resample_positions
from tests.support.networks import images, randomised

CONFIG = ViTConfig(image_size=16, patch_size=4, width=24, depth=2, mlp_width=48, heads=3, num_classes=5)


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize(
    ("before", "after"), [(14, 24), (14, 37), (14, 7), (7, 12), (16, 27), (4, 5), (24, 14), (3, 1), (1, 3), (2, 9)]
)
def test_resampling_equals_scipys(before: int, after: int, has_cls: bool) -> None:
    positions = torch.randn(1, before**2 + has_cls, 48, generator=torch.Generator().manual_seed(before))
    found = resample_positions(positions, before, after, has_cls)
    grid = positions[0, int(has_cls) :].reshape(before, before, 48).numpy()
    zoomed = scipy.ndimage.zoom(grid, (after / before, after / before, 1), order=1).reshape(1, after**2, 48)
    expected = np.concatenate([positions[:, : int(has_cls)].numpy(), zoomed], axis=1)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


def test_the_same_grid_is_left_alone_and_another_number_of_rows_refused() -> None:
    positions = torch.randn(1, 17, 8)
    assert resample_positions(positions, 4, 4, True) is positions
    with pytest.raises(ValueError, match="17 position embeddings, not the 16 of a 4 x 4 grid"):
        resample_positions(positions, 4, 8, False)


@pytest.mark.parametrize("change", [{"pool": "cls"}, {"pool": "gap"}, {"position": "sincos2d"}, {"pre_logits": 7}])
def test_a_network_at_another_resolution(change: dict[str, object]) -> None:
    model = randomised(ViTConfig.model_validate(CONFIG.model_dump() | change))
    model.checkpointing = True
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = model.at_resolution(28)
    assert other.config == model.config.model_copy(update={"image_size": 28})
    assert (other.training, other.checkpointing) == (False, True)
    assert other(images(size=28)).shape == (2, 5)
    after = other.state_dict()
    assert before.keys() == after.keys()
    same = [name for name in before if name != "positions"]
    assert all(torch.equal(before[name], after[name]) for name in same)
    if "positions" in before:
        expected = resample_positions(before["positions"], 4, 7, model.config.pool == "cls")
        assert torch.equal(after["positions"], expected)
    with torch.no_grad():
        other.norm.weight.zero_()
    assert torch.equal(model.norm.weight, before["norm.weight"]), "the copy shares weights with the network"


def test_at_the_same_resolution_it_is_the_same_function() -> None:
    model = randomised(CONFIG)
    assert torch.equal(model.at_resolution(16)(images()), model(images()))


def test_a_resolution_that_patches_do_not_divide_is_refused() -> None:
    with pytest.raises(ValidationError, match="patch_size 4 does not divide image_size 18"):
        randomised(CONFIG).at_resolution(18)
