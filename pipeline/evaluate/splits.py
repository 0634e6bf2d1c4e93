"""Train, validation and test as types: settings are chosen on the validation part of training, never on test data.

::

    TrainPart --split / vtab_split--> Choice(FitPart, ValidationPart)   chooses; has no place for a TestPart
    TestPart                                                            scores what was chosen

Which part a sample is in depends on a hash of its key alone, so it stays there when samples are added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError

VTAB_TRAIN, VTAB_VALIDATION = 800, 200  # VTAB-1k (arXiv 1910.04867, section 3.1)
_MAX_SHOWN = 3  # samples or classes named in an error


@dataclass(frozen=True, eq=False)
class Labelled:
    """keys (N), labels (N,) class numbers or (N, K) of 0 and 1, features (N, D).

    Use the parts below, which name their purpose.
    """

    keys: tuple[str, ...]
    labels: NDArray[Any]
    features: NDArray[np.float32]

    def __post_init__(self) -> None:
        if not len(self.keys) == len(self.labels) == len(self.features):
            raise ValueError(f"{len(self.keys)} keys, {len(self.labels)} labels, {len(self.features)} features")


class TrainPart(Labelled):
    """All training samples: what is refitted on after choosing."""


class FitPart(Labelled):
    """Training samples that candidates are fitted on."""


class ValidationPart(Labelled):
    """Training samples that candidates are compared on."""


class TestPart(Labelled):
    """Test samples: nothing may be fitted to them or chosen on them."""

    __test__ = False  # to pytest, which collects classes of such a name


@dataclass(frozen=True)
class Choice:
    """The two parts of training between which settings are chosen. Raises InputError if they share a sample."""

    fit: FitPart
    validation: ValidationPart

    def __post_init__(self) -> None:
        _require_kind(self.fit, FitPart)
        _require_kind(self.validation, ValidationPart)
        check_disjoint(self.fit.keys, self.validation.keys, "fit", "validation")


def split(train: TrainPart, share: float) -> Choice:
    """Hold out about *share* of the training samples. Raises InputError when one side would be empty."""
    _require_kind(train, TrainPart)
    return _choice(train, validation_mask(train.keys, share))


def vtab_split(
    train: TrainPart, num_classes: int, *, allow_missing: bool = False
) -> tuple[TrainPart, Choice, tuple[int, ...]]:
    """VTAB-1k: 1,000 samples to refit on, their 800/200 parts to choose on, and classes that the 800 do not have.

    The samples are those that come first in the order of the hashes of their keys. Raises InputError for too few
    samples, and for missing classes unless *allow_missing*: with 397 classes (Sun397) 800 samples cannot cover all.
    """
    _require_kind(train, TrainPart)
    order = vtab_order(train.keys)
    chosen = _take_rows(train, order, TrainPart)
    missing = check_coverage(chosen.labels[:VTAB_TRAIN], num_classes, allow_missing=allow_missing)
    return chosen, _choice(chosen, np.arange(len(order)) >= VTAB_TRAIN), missing


def vtab_order(keys: Sequence[str]) -> NDArray[np.int64]:
    """Rows of the 1,000 samples of VTAB-1k: the 800 to fit on, then the 200 to choose on.

    Raises InputError for too few samples.
    """
    num_samples = VTAB_TRAIN + VTAB_VALIDATION
    if len(keys) < num_samples:
        raise InputError(f"{len(keys)} training samples are too few for VTAB-1k, which takes {num_samples:,}")
    order: NDArray[np.int64] = np.lexsort((np.array(keys), _hash_positions(keys, "vtab")))[:num_samples]
    return order


def check_coverage(labels: NDArray[Any], num_classes: int, *, allow_missing: bool) -> tuple[int, ...]:
    """Classes without a sample among the *labels* to fit on. Raises InputError for any, unless *allow_missing*."""
    missing = missing_classes(labels, num_classes)
    if missing and not allow_missing:
        shown = ", ".join(map(str, missing[:_MAX_SHOWN])) + (", ..." if len(missing) > _MAX_SHOWN else "")
        raise InputError(
            f"{len(missing)} of {num_classes} classes have no sample among the {VTAB_TRAIN} of VTAB-1k: {shown}",
            "allow missing classes if that is meant",
        )
    return missing


def missing_classes(labels: NDArray[Any], num_classes: int) -> tuple[int, ...]:
    """Classes without a sample; labels (N,) class numbers or (N, K) of 0 and 1."""
    counts = np.bincount(labels, minlength=num_classes) if labels.ndim == 1 else labels.sum(axis=0)
    return tuple(int(label) for label in np.flatnonzero(counts[:num_classes] == 0))


def validation_mask(keys: tuple[str, ...], share: float) -> NDArray[np.bool_]:
    """True for the samples held out: about *share* of them. Raises InputError when one side would be empty."""
    mask = held_out(keys, share)
    num_held_out = int(mask.sum())
    check_held_out(len(keys) - num_held_out, num_held_out, share)
    return mask


def check_held_out(num_fit: int, num_held_out: int, share: float) -> None:
    """Raise InputError when holding out *share* of the training samples left one side empty."""
    if not num_fit or not num_held_out:
        raise InputError(f"{num_fit + num_held_out} training samples are too few to hold out {share:.0%} of them")


def held_out(keys: tuple[str, ...], share: float) -> NDArray[np.bool_]:
    """(N,) the same mask for some of the training samples, where one side may be empty."""
    mask: NDArray[np.bool_] = _hash_positions(keys, "validation") < share
    return mask


def check_disjoint(
    train_digests: Iterable[str], test_digests: Iterable[str], train: str = "train", test: str = "test"
) -> None:
    """Refuse parts that share a sample: InputError with how many, and the first of them.

    Between datasets give digests of the images. Keys do not identify images there: they are hashes of paths relative to
    each corpus, so equal keys may be other images and equal images have other keys.
    """
    shared = sorted(set(train_digests) & set(test_digests))
    if shared:
        more = ", ..." if len(shared) > _MAX_SHOWN else ""
        shown = ", ".join(digest[:20] for digest in shared[:_MAX_SHOWN]) + more
        raise InputError(
            f"{len(shared)} samples are in both {train} and {test}: {shown}",
            "scores would mean nothing: take them out of one of the two",
        )


def _choice(train: TrainPart, mask: NDArray[np.bool_]) -> Choice:
    """*mask* (N,): True for the samples held out."""
    fit, validation = np.flatnonzero(~mask), np.flatnonzero(mask)
    return Choice(_take_rows(train, fit, FitPart), _take_rows(train, validation, ValidationPart))


Part = TypeVar("Part", bound=Labelled)


def _take_rows(part: Labelled, rows: NDArray[np.int64], kind: type[Part]) -> Part:
    return kind(tuple(part.keys[row] for row in rows), part.labels[rows], part.features[rows])


def _require_kind(part: Labelled, kind: type[Labelled]) -> None:
    """Checked at run time too: types alone do not stop a test part from being passed. Raises InputError."""
    if not isinstance(part, kind):
        raise InputError(
            f"a {type(part).__name__} was given where a {kind.__name__} is needed", "test data must not choose"
        )


def _hash_positions(keys: Iterable[str], person: str) -> NDArray[np.float64]:
    """(N,) numbers in [0, 1), by a hash of each key."""
    digests = (hashlib.blake2b(key.encode(), digest_size=8, person=person.encode()).digest() for key in keys)
    return np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
