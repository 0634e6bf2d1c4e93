"""What a run is trained on, and the check of everything that can be known before a rank starts. Pure but for one read.

``make_plan`` is the only place where a recipe is checked against its data; what follows takes the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

from pipeline.base.errors import InputError, MismatchError, RecipeError
from pipeline.base.store.protocol import Store
from pipeline.base.world import allowed_world_sizes
from pipeline.models.config import ViTConfig
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.dataset import DatasetCard, read_dataset_card
from pipeline.stream.mixture import mixture_digest
from pipeline.stream.order import check_world
from pipeline.train.deepspeed_config import check_engine
from pipeline.train.recipe import accumulation

Value = TypeVar("Value")


class TrainingData(Protocol):
    """What has to be known of the data before training. A DatasetCard is one."""

    @property
    def name(self) -> str:
        """For people; of a mixture, its datasets and their weights."""

    @property
    def digest(self) -> str:
        """What names the content."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The same of all datasets."""

    @property
    def num_samples(self) -> int:
        """Of all datasets together."""


@dataclass(frozen=True)
class DatasetMixture:
    """Several datasets with weights."""

    name: str
    digest: str
    class_names: tuple[str, ...]
    num_samples: int


@dataclass(frozen=True)
class TrainingPlan:
    """A recipe that fits its data. *world_sizes*: the numbers of ranks that may train it, the largest first."""

    recipe: PretrainRecipe
    data: TrainingData
    architecture: ViTConfig  # the recipe's model, with the classes of the data
    world_sizes: tuple[int, ...]

    def with_steps(self, steps: int) -> Self:
        """The same for *steps* updates: an extended run has more than its recipe says."""
        return replace(self, recipe=self.recipe.model_copy(update={"steps": steps}))


def read_training_data(workspace: Store, recipe: PretrainRecipe) -> TrainingData:
    """Of the datasets that *recipe* names. Raises InputError when one is not there, MismatchError for other classes."""
    weights = recipe.dataset_weights
    return _mix([read_dataset_card(workspace, name) for name in weights], list(weights.values()))


def _mix(cards: Sequence[DatasetCard], weights: Sequence[float]) -> TrainingData:
    """One for all of *cards*. Raises MismatchError when their classes are not the same."""
    first = cards[0]
    if len(cards) == 1:
        return first
    for card in cards[1:]:
        if card.class_names != first.class_names:
            raise MismatchError(
                f"datasets {first.name} and {card.name} cannot be mixed: {_class_difference(first, card)}",
                "shard them with the same class table",
            )
    return DatasetMixture(
        name=" + ".join(f"{weight:g} {card.name}" for card, weight in zip(cards, weights, strict=True)),
        digest=mixture_digest([card.digest for card in cards], weights),
        class_names=first.class_names,
        num_samples=sum(card.num_samples for card in cards),
    )


def _class_difference(first: DatasetCard, second: DatasetCard) -> str:
    names, others = first.class_names, second.class_names
    if len(names) != len(others):
        return f"they have {len(names)} and {len(others)} classes"
    label = next(label for label in range(len(names)) if names[label] != others[label])
    return f"class {label} is {names[label]!r} and {others[label]!r}"


def make_plan(recipe: PretrainRecipe, data: TrainingData) -> TrainingPlan:
    """Check *recipe* against *data*. Raises RecipeError with all that is wrong, InputError for data that do not do."""
    problems: list[str] = []

    def checked(check: Callable[[], Value]) -> Value | None:
        try:
            return check()
        except RecipeError as error:
            problems.extend(error.problems)
            return None

    model = checked(lambda: architecture(recipe, data))
    sizes = checked(lambda: world_sizes(recipe))
    checked(lambda: check_engine(recipe.engine))
    checked(lambda: _check_precision(recipe))
    if problems or model is None or sizes is None:
        raise RecipeError(problems)
    if data.num_samples < sizes[0]:
        raise InputError(f"dataset {data.name} has {data.num_samples} samples for {sizes[0]} ranks")
    return TrainingPlan(recipe, data, model, tuple(sizes))


def architecture(recipe: PretrainRecipe, data: TrainingData) -> ViTConfig:
    """The network for the classes of the dataset. Raises RecipeError when the recipe states another number."""
    num_classes, stated = len(data.class_names), recipe.model.num_classes
    if recipe.objective.labels == "none":
        if stated:
            raise RecipeError(
                [f"model.num_classes is {stated}, but {recipe.objective.name} trains no head; leave it out"]
            )
        return recipe.model
    if not num_classes:
        raise InputError(f"dataset {data.name} has no labels", f"the {recipe.objective.name} objective needs them")
    if stated not in (0, num_classes):
        raise RecipeError([f"model.num_classes is {stated}, but dataset {data.name} has {num_classes}; leave it out"])
    return recipe.model.model_copy(update={"num_classes": num_classes})


def world_sizes(recipe: PretrainRecipe) -> Sequence[int]:
    """The numbers of ranks that may train *recipe*, the largest first. Raises RecipeError when there is none."""
    least, most = recipe.worker_range
    stream = recipe.stream
    if least == most:
        _check_size(recipe, most)
        return [most]
    sizes = [size for size in allowed_world_sizes(stream.partitions) if least <= size <= most]
    if not sizes:
        works = ", ".join(map(str, allowed_world_sizes(stream.partitions)))
        raise RecipeError(
            [f"no number of workers from {least} to {most} divides stream.partitions {stream.partitions}; {works} do"]
        )
    for size in sizes:
        _check_size(recipe, size)
    return sizes[::-1]


def _check_size(recipe: PretrainRecipe, size: int) -> None:
    check_world(size, recipe.stream.partitions, recipe.stream.batch_size)
    accumulation(recipe.stream.batch_size, size, recipe.engine.micro_batch_size)


def _check_precision(recipe: PretrainRecipe) -> None:
    if recipe.on_nonfinite == "skip" and recipe.engine.zero_stage == 0:
        raise RecipeError(
            [
                "on_nonfinite: skip needs engine.zero_stage 1, 2 or 3, since without ZeRO every update is applied; "
                "set one, or on_nonfinite: stop"
            ]
        )
