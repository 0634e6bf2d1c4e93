"""The parts of training: stable, about as large as asked, never empty; leaks are refused."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.base.errors import InputError
from pipeline.evaluate.splits import (
    Choice,
    FitPart,
    Labelled,
    TestPart,
    TrainPart,
    ValidationPart,
    check_disjoint,
    missing_classes,
    split,
    validation_mask,
    vtab_split,
)


def keys(count: int, prefix: str = "k") -> tuple[str, ...]:
    """Keys of samples."""
    return tuple(f"{prefix}{number:05d}" for number in range(count))


def part(kind: type[Labelled], count: int, prefix: str = "k", classes: int = 5) -> Labelled:
    """Samples with their number as their only feature."""
    rows = np.arange(count)
    return kind(keys(count, prefix), rows % classes, rows[:, None].astype(np.float32))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_about_the_asked_share_is_held_out(share: float) -> None:
    mask = validation_mask(keys(20_000), share)
    assert mask.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 20_000))


def test_a_sample_stays_on_its_side_when_others_come_or_change_places() -> None:
    before = dict(zip(keys(500), validation_mask(keys(500), 0.2), strict=True))
    more = (*keys(300, "new"), *reversed(keys(500)))
    after = dict(zip(more, validation_mask(more, 0.2), strict=True))
    assert all(after[key] == before[key] for key in before)
    wider = dict(zip(keys(500), validation_mask(keys(500), 0.4), strict=True))
    assert all(wider[key] for key, held in before.items() if held)


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (3, 0.001), (3, 0.999), (0, 0.1)])
def test_an_empty_side_is_refused(count: int, share: float) -> None:
    with pytest.raises(InputError, match=f"{count} training samples are too few to hold out"):
        validation_mask(keys(count), share)


def test_split_keeps_samples_together_with_their_labels() -> None:
    train = part(TrainPart, 400)
    choice = split(train, 0.2)
    assert set(choice.fit.keys) | set(choice.validation.keys) == set(train.keys)
    assert [key in set(choice.validation.keys) for key in train.keys] == validation_mask(train.keys, 0.2).tolist()
    for side in (choice.fit, choice.validation):
        numbers = np.array([int(key[1:]) for key in side.keys])
        assert (side.features[:, 0] == numbers).all()
        assert (side.labels == numbers % 5).all()


def test_a_planted_leak_between_datasets_is_refused() -> None:
    train, test = keys(1000, "train"), keys(500, "test")
    check_disjoint(train, test)
    with pytest.raises(
        InputError, match="2 samples are in both train and test: test00007, test00123 - scores would mean"
    ):
        check_disjoint([*train, test[123], test[7]], test)
    with pytest.raises(
        InputError, match=r"500 samples are in both the part and test: test00000, test00001, test00002, \.\.\."
    ):
        check_disjoint(test, test, "the part")


def test_a_planted_leak_between_the_parts_of_training_is_refused() -> None:
    fit, validation = part(FitPart, 50), part(ValidationPart, 20, "v")
    Choice(fit, validation)
    leaked = ValidationPart((*validation.keys[:-1], fit.keys[3]), validation.labels, validation.features)
    with pytest.raises(InputError, match="1 samples are in both fit and validation: k00003"):
        Choice(fit, leaked)


def test_test_data_cannot_choose() -> None:
    fit, validation, test = part(FitPart, 50), part(ValidationPart, 20, "v"), part(TestPart, 20, "t")
    for parts in ((fit, test), (test, validation), (validation, fit)):
        with pytest.raises(
            InputError, match=r"a \w+Part was given where a \w+Part is needed - test data must not choose"
        ):
            Choice(*parts)
    with pytest.raises(InputError, match="a TestPart was given where a TrainPart is needed"):
        split(test, 0.5)
    with pytest.raises(InputError, match="a TestPart was given where a TrainPart is needed"):
        vtab_split(part(TestPart, 2000), 5)


def test_vtab_takes_800_and_200_whatever_the_order() -> None:
    train = part(TrainPart, 3000)
    both, choice, missing = vtab_split(train, 5)
    assert missing == ()
    assert (len(both.keys), len(choice.fit.keys), len(choice.validation.keys)) == (1000, 800, 200)
    assert both.keys == choice.fit.keys + choice.validation.keys
    assert len(set(both.keys)) == 1000
    assert np.mean([int(key[1:]) for key in both.keys]) == pytest.approx(1500, abs=120), "drawn from all, not the first"
    order = np.random.default_rng(0).permutation(3000)
    mixed = TrainPart(tuple(train.keys[row] for row in order), train.labels[order], train.features[order])
    again = vtab_split(mixed, 5)[1]
    assert (again.fit.keys, again.validation.keys) == (choice.fit.keys, choice.validation.keys)
    assert np.array_equal(again.fit.features, choice.fit.features)
    with pytest.raises(InputError, match="999 training samples are too few for VTAB-1k, which takes 1,000"):
        vtab_split(part(TrainPart, 999), 5)


def test_vtab_names_classes_that_are_not_covered() -> None:
    train = part(TrainPart, 1000, classes=5)
    with pytest.raises(InputError, match=r"2 of 7 classes have no sample among the 800 of VTAB-1k: 5, 6 - allow"):
        vtab_split(train, 7)
    assert vtab_split(train, 7, allow_missing=True)[2] == (5, 6)
    assert missing_classes(np.array([[0, 1, 0], [0, 1, 1]]), 3) == (0,)
    assert missing_classes(np.array([0, 0, 2]), 4) == (1, 3)
