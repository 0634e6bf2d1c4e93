"""A pretraining's recipe: what is refused and how that is told; what the fingerprint holds and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.base.config import apply_overrides, build
from pipeline.base.digests import fingerprint
from pipeline.base.errors import InputError, RecipeError
from pipeline.models.config import config_by_name
from pipeline.pretrain.plan import architecture, make_plan, world_sizes
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.dataset import DatasetCard
from tests.support.statistics import plain_statistics


def tree() -> dict[str, Any]:
    """A small recipe that is right."""
    return {
        "run": "r",
        "dataset": "d",
        "steps": 100,
        "model": {"image_size": 8, "patch_size": 4, "width": 16, "depth": 1, "mlp_width": 32, "heads": 2},
        "stream": {"batch_size": 16, "partitions": 4, "window": 10, "augment": {"size": 8}},
        "transform": {"size": 8, "resize": 8},
        "schedule": {"warmup_steps": 10},
        "workers": 2,
    }


def recipe(*overrides: str) -> PretrainRecipe:
    """The small recipe with *overrides*."""
    return build(PretrainRecipe, apply_overrides(tree(), list(overrides)))


def card(num_classes: int = 4, digest: str = "digest") -> DatasetCard:
    """A dataset's card."""
    return DatasetCard(
        name="d",
        class_names=tuple(f"class-{label}" for label in range(num_classes)),
        num_input=20,
        num_samples=20,
        num_rejected=0,
        num_duplicates=0,
        num_bytes=1000,
        num_shards=1,
        statistics=plain_statistics((5,) * num_classes, {"png": 20}, 8),
        made_of={},
        recipe={},
        listing_digest="l",
        fingerprint="f",
        tables={},
        digest=digest,
    )


def problems(*overrides: str) -> list[str]:
    """What is said about the small recipe with *overrides*."""
    with pytest.raises(RecipeError) as caught:
        recipe(*overrides)
    assert caught.value.exit_code == 2
    assert not any("\n" in problem or "validation error" in problem for problem in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("step=5", "unknown key 'step' - did you mean 'steps'?"),
        ("model.widht=32", "unknown key 'model.widht' - did you mean 'width'?"),
        ("stream.augment.fliip=true", "unknown key 'stream.augment.fliip' - did you mean 'flip'?"),
        ("optimizer.lr=0.1", "unknown key 'optimizer.lr'"),
        ("steps=0", "'steps': Input should be greater than 0 (got 0)"),
        ("steps=many", "'steps': Input should be a valid integer"),
        ("optimizer.learning_rate=.nan", "'optimizer.learning_rate': Input should be a finite number"),
        ("optimizer.learning_rate=-1", "'optimizer.learning_rate': Input should be greater than 0"),
        ("engine.zero_stage=4", "'engine.zero_stage'"),
        ("run=../elsewhere", "'run'"),
        ("objective=sigmoids", "did you mean 'sigmoid'?"),
        ("workers={min: 3, max: 2}", "min 3 is more than max 2"),
        ("workers={min: 1, most: 2}", "'workers': write a number of ranks, or {min: 2, max: 8}"),
        ("workers=-2", "'workers': write a number of ranks"),
        ("on_nonfinite=ignore", "'on_nonfinite'"),
        ("stream.partitions=3", "partitions 3 does not divide batch_size 16; use [1, 2, 4, 8, 16]"),
        ("model.patch_size=3", "patch_size 3 does not divide image_size 8"),
    ],
)
def test_a_mistake_is_told_in_one_line(override: str, said: str) -> None:
    found = problems(override)
    assert len(found) == 1
    assert said in found[0]


def test_all_mistakes_are_told_at_once() -> None:
    found = problems("steps=-1", "workers=none", "model.depht=3", "engine.precision=fp64")
    assert len(found) == 4
    for name in ("steps", "workers", "model.depht", "engine.precision"):
        assert any(f"'{name}'" in problem for problem in found)


@pytest.mark.parametrize(
    "overrides",
    [["model.image_size=16"], ["stream.augment.size=16"], ["transform.size=16", "transform.resize=16"]],
    ids=["model", "augment", "transform"],
)
def test_sizes_that_disagree_are_all_named(overrides: list[str]) -> None:
    (said,) = problems(*overrides)
    assert all(name in said for name in ("model.image_size", "stream.augment.size", "transform.size"))
    assert "16" in said


def test_warm_up_longer_than_the_run() -> None:
    assert problems("schedule.warmup_steps=101") == ["schedule.warmup_steps 101 is more than steps 100"]
    assert recipe("schedule.warmup_steps=100").schedule.warmup_steps == 100
    samples = "schedule={warmup_samples: 1601}"
    assert problems(samples) == ["schedule.warmup_samples 1601 is more than steps 100"]


def test_a_named_model_is_filled_in_and_can_be_changed() -> None:
    found = recipe("model={name: S/4, image_size: 8, pool: gap}")
    assert found.model == config_by_name("S/4", image_size=8, pool="gap")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("{name: XS/16}", "no model 'XS/16'"),
        ("{name: S/4, image_size: 8, widht: 3}", "did you mean 'width'?"),
        ("{name: S/4, image_size: 8, dropout: 2}", "'model.dropout': Input should be less than 1"),
        ("{name: S/4, image_size: 9}", "patch_size 4 does not divide image_size 9"),
    ],
)
def test_a_mistake_beside_a_models_name_is_told_as_clearly(model: str, said: str) -> None:
    (found,) = problems(f"model={model}")
    assert said in found


def test_classes_come_from_the_dataset() -> None:
    assert architecture(recipe(), card(7)).num_classes == 7
    assert architecture(recipe("model.num_classes=7"), card(7)).num_classes == 7
    with pytest.raises(RecipeError, match=r"model.num_classes is 5, but dataset d has 7"):
        architecture(recipe("model.num_classes=5"), card(7))
    with pytest.raises(InputError, match="dataset d has no labels"):
        architecture(recipe(), card(0))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["engine.precision=fp16", "engine.zero_stage=0"], "fp16 needs zero_stage 1, 2 or 3"),
        (["on_nonfinite=skip", "engine.zero_stage=0"], "on_nonfinite: skip needs engine.zero_stage 1, 2 or 3"),
        (["workers={min: 3, max: 3}"], "world sizes that work: 1, 2, 4"),
        (["workers={min: 5, max: 9}"], "no number of workers from 5 to 9 divides stream.partitions 4; 1, 2, 4 do"),
        (["objective=masked_patches", "model.num_classes=4"], "masked_patches trains no head"),
        (["workers=3"], "3 workers do not divide stream.partitions 4; world sizes that work: 1, 2, 4"),
        (["workers=8"], "world sizes that work: 1, 2, 4"),
        (["engine.micro_batch_size=3"], "micro_batch_size 3 does not divide the 8 samples that each of 2 ranks gets"),
        (["model.num_classes=9"], "model.num_classes is 9"),
    ],
)
def test_what_does_not_fit_together_is_told_before_a_rank_starts(overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_plan(recipe(*overrides), card())


def test_all_that_does_not_fit_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe("workers=3", "model.num_classes=9", "engine.offload_parameters=cpu"), card())
    assert len(caught.value.problems) == 3


def test_an_elastic_run_takes_the_sizes_that_fit() -> None:
    assert world_sizes(recipe("workers={min: 1, max: 4}")) == [4, 2, 1]
    assert world_sizes(recipe("workers={min: 2, max: 3}")) == [2]
    assert world_sizes(recipe("workers=4")) == [4]


def test_fewer_samples_than_ranks() -> None:
    few = card().model_copy(update={"num_samples": 1})
    with pytest.raises(InputError, match="dataset d has 1 samples for 2 ranks"):
        make_plan(recipe(), few)


def test_masked_patches_need_no_classes() -> None:
    found = recipe("objective=masked_patches")
    make_plan(found, card(0))
    assert architecture(found, card(7)).num_classes == 0


def test_what_fits_passes() -> None:
    make_plan(recipe("engine.precision=fp32", "engine.zero_stage=0", "engine.micro_batch_size=4"), card())


FREE = [
    "workers=4",
    "resources.threads=3",
    "resources.cpus=2",
    "max_restarts=9",
    "log_every=3",
    "checkpoint_every=7",
    "stream.workers=2",
    "stream.check=header",
    "engine.micro_batch_size=4",
    "engine.zero_stage=1",
    "engine.offload_optimizer=cpu",
    "workers={min: 1, max: 4}",
    "grace_seconds=3",
    "on_nonfinite=skip",
    "max_skipped=3",
    "keep_last=3",
    "keep_every=50",
    "max_failed_saves=5",
    "save_patience_seconds=60",
    "checkpoint_blocks=true",
]
FIXED = [
    "run=other",
    "dataset=other",
    "seed=1",
    "steps=99",
    "optimizer.learning_rate=0.5",
    "optimizer.clip=0",
    "schedule.decay=linear",
    "schedule.end=0.00001",
    "model.width=32",
    "model.dropout=0.1",
    "stream.batch_size=32",
    "stream.partitions=2",
    "stream.window=11",
    "stream.augment.flip=false",
    "transform.mode=square",
    "engine.precision=fp32",
    "objective=sigmoid",
    "optimizer.ema=0.99",
    "init=other@100",
]


def made_of(*overrides: str, digest: str = "digest") -> str:
    """The fingerprint."""
    return fingerprint(recipe(*overrides).fingerprinted(digest))


@pytest.mark.parametrize("override", FREE)
def test_what_may_change_between_attempts_is_not_in_the_fingerprint(override: str) -> None:
    assert recipe(override) != recipe()
    assert made_of(override) == made_of()


@pytest.mark.parametrize("override", FIXED)
def test_what_fixes_the_result_is_in_the_fingerprint(override: str) -> None:
    assert made_of(override) != made_of()


def test_the_datasets_content_is_in_the_fingerprint() -> None:
    assert made_of(digest="other") != made_of()
