"""What the plain engine holds: the average by its formula, a state that goes into another engine, autocast, rates."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pipeline.base.errors import MismatchError
from pipeline.checkpoints.state import EMA, WEIGHT
from pipeline.train.recipe import OptimizerRecipe
from pipeline.train.torch_engine import TorchEngine

SHAPES = {"0.weight": (8, 6), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)}


class State:
    """A FragmentReader over copies of an engine's fragments."""

    def __init__(self, engine: TorchEngine) -> None:
        self.updates = engine.updates
        self._shapes = dict(engine.shapes())
        self.whole = {(fragment.kind, fragment.name): fragment.values.clone() for fragment in engine.fragments()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        return self.whole[kind, name][start:stop]


def engine_of(recipe: OptimizerRecipe, seed: int = 0, *, autocast: bool = False) -> TorchEngine:
    """Over a small network."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return TorchEngine(module, recipe, lambda _, p: p.ndim == 2, autocast=autocast)


def loss_of(engine: TorchEngine, step: int) -> Tensor:
    """Mean cross-entropy on the samples of *step*."""
    generator = torch.Generator().manual_seed(step)
    inputs, labels = torch.randn(12, 6, generator=generator), torch.randint(0, 3, (12,), generator=generator)
    return nn.functional.cross_entropy(engine.module(inputs), labels)


def train(engine: TorchEngine, last: int, first: int = 0, rate: float = 0.05) -> list[str]:
    """The losses of updates *first* to *last*, in hex."""
    return [engine.update([partial(loss_of, engine, step)], rate).loss.hex() for step in range(first, last)]


def test_the_average_is_the_formula() -> None:
    engine = engine_of(OptimizerRecipe(ema=0.75))
    expected = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    for step in range(6):
        train(engine, step + 1, step)
        weights = {name: p.detach() for name, p in engine.module.named_parameters()}
        expected = {name: 0.75 * average + 0.25 * weights[name] for name, average in expected.items()}
    found = {f.name: f.values for f in engine.fragments() if f.kind == EMA}
    assert found.keys() == expected.keys()
    for name, average in expected.items():
        torch.testing.assert_close(found[name], average.reshape(-1), rtol=1e-6, atol=1e-8)
        assert not torch.allclose(average, weights[name])


@pytest.mark.parametrize(
    ("recipe", "kinds"),
    [
        (OptimizerRecipe(), {WEIGHT, "exp_avg", "exp_avg_sq"}),
        (OptimizerRecipe(ema=0.9), {WEIGHT, "exp_avg", "exp_avg_sq", EMA}),
        (OptimizerRecipe(name="sgd"), {WEIGHT, "momentum_buffer"}),
        (OptimizerRecipe(name="sgd", momentum=0), {WEIGHT}),
    ],
)
def test_the_kinds_are_there_before_the_first_update_and_after(recipe: OptimizerRecipe, kinds: set[str]) -> None:
    engine = engine_of(recipe)
    assert engine.shapes() == SHAPES
    before = engine.fragments()
    for _ in range(2):
        fragments = engine.fragments()
        assert {(f.kind, f.name, f.start, f.stop) for f in fragments} == {
            (kind, name, 0, torch.Size(shape).numel()) for kind in kinds for name, shape in SHAPES.items()
        }
        train(engine, 1)
    for old, new in zip(before, engine.fragments(), strict=True):
        assert old.values.data_ptr() == new.values.data_ptr(), "fragments are views: they follow the updates"


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_loaded_engine_goes_on_bit_for_bit(name: str) -> None:
    recipe = OptimizerRecipe(name=name, ema=0.9)
    calm = engine_of(recipe)
    train(calm, 4)
    saved = State(calm)
    expected = train(calm, 9, 4)
    for done in (0, 3):
        other = engine_of(recipe, seed=5)
        train(other, done)
        other.load(saved)
        assert train(other, 9, 4) == expected
        assert other.updates == calm.updates == 9
        for one, two in zip(calm.fragments(), other.fragments(), strict=True):
            assert torch.equal(one.values, two.values), (one.kind, one.name)


@pytest.mark.parametrize("change", [{"2.bias": (4,)}, {"3.bias": (4,)}, {"2.bias": None}])
def test_another_network_is_refused_before_anything_changes(change: dict[str, tuple[int, ...] | None]) -> None:
    engine = engine_of(OptimizerRecipe())
    saved, before = State(engine_of(OptimizerRecipe(), seed=5)), State(engine)
    merged = {**saved.shapes(), **change}
    saved._shapes = {name: shape for name, shape in merged.items() if shape is not None}
    with pytest.raises(MismatchError, match=f"parameter {next(iter(change))}"):
        engine.load(saved)
    assert all(torch.equal(f.values, before.whole[f.kind, f.name]) for f in engine.fragments())


def test_autocast_computes_in_bfloat16_and_updates_in_float32() -> None:
    plain, half = engine_of(OptimizerRecipe()), engine_of(OptimizerRecipe(), autocast=True)
    seen: list[torch.dtype] = []
    half.module.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    expected, found = train(plain, 5), train(half, 5)
    assert set(seen) == {torch.bfloat16}
    assert [float.fromhex(loss) for loss in found] == pytest.approx(
        [float.fromhex(loss) for loss in expected], rel=0.02
    )
    assert found != expected
    assert {p.dtype for p in half.module.parameters()} == {torch.float32}


def test_every_group_has_its_share_of_the_rate() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(2)])
            self.head = nn.Linear(2, 2, bias=False)

        def forward(self) -> Tensor:
            return sum(p.sum() for p in self.parameters())

    module = Tiny()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    recipe = OptimizerRecipe(name="sgd", weight_decay=0, clip=0, layer_decay=0.5)
    TorchEngine(module, recipe).update([lambda: module()], 0.8)
    moved = {name: (before[name] - p.detach()).mean().item() for name, p in module.named_parameters()}
    assert moved == pytest.approx({"blocks.0.weight": 0.2, "blocks.1.weight": 0.4, "head.weight": 0.8}, rel=1e-5)
