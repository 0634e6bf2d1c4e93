"""What a run is trained on: one dataset, or several that are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.base.errors import MismatchError
from pipeline.base.store import Store
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.dataset import DatasetCard, read_dataset_card
from pipeline.stream.mixture import mixture_digest


class TrainingData(Protocol):
    """What has to be known of it before training. A DatasetCard is one."""

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
class Mixed:
    """Several datasets with weights."""

    name: str
    digest: str
    class_names: tuple[str, ...]
    num_samples: int


def read_training_data(workspace: Store, recipe: PretrainRecipe) -> TrainingData:
    """Of the datasets that *recipe* names. Raises InputError when one is not there, MismatchError as ``joined``."""
    weights = recipe.dataset_weights
    return joined([read_dataset_card(workspace, name) for name in weights], list(weights.values()))


def joined(cards: Sequence[DatasetCard], weights: Sequence[float]) -> TrainingData:
    """One for all of *cards*. Raises MismatchError when their classes are not the same."""
    first = cards[0]
    if len(cards) == 1:
        return first
    for card in cards[1:]:
        if card.class_names != first.class_names:
            raise MismatchError(
                f"datasets {first.name} and {card.name} cannot be mixed: {_difference(first, card)}",
                "shard them with the same class table",
            )
    return Mixed(
        name=" + ".join(f"{weight:g} {card.name}" for card, weight in zip(cards, weights, strict=True)),
        digest=mixture_digest([card.digest for card in cards], weights),
        class_names=first.class_names,
        num_samples=sum(card.num_samples for card in cards),
    )


def _difference(first: DatasetCard, other: DatasetCard) -> str:
    ours, theirs = first.class_names, other.class_names
    if len(ours) != len(theirs):
        return f"they have {len(ours)} and {len(theirs)} classes"
    label = next(label for label in range(len(ours)) if ours[label] != theirs[label])
    return f"class {label} is {ours[label]!r} and {theirs[label]!r}"
