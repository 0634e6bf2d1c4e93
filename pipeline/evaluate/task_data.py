"""TaskData: a task opened for one evaluation. Whether it may be judged is checked first; its parts are typed.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.features.extract import iterate_features, load_features, prepare_features
from pipeline.evaluate.features.storage import Features, FeatureSpec
from pipeline.evaluate.leakage import refuse_leak
from pipeline.evaluate.metrics.classification import headline, mean_average_precision, oracle, share_of
from pipeline.evaluate.metrics.outcomes import Outcomes, of_label_scores, of_probabilities, of_scores
from pipeline.evaluate.model_ref import ModelRef
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import Task
from pipeline.evaluate.splits import (
    VTAB_TRAIN,
    Choice,
    TestPart,
    TrainPart,
    check_coverage,
    held_out,
    split,
    validation_mask,
    vtab_order,
    vtab_split,
)
from pipeline.records.dataset import DatasetCard, read_dataset_card
from pipeline.records.score import Metric
from pipeline.stream.dataset import DatasetReader

Labels = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Masks:
    """Over the samples of a training dataset, in its order (N,): those that are used, and of them those held out."""

    used: NDArray[np.bool_]
    held_out: NDArray[np.bool_]

    @property
    def fit(self) -> NDArray[np.bool_]:
        """Those that candidates are fitted on."""
        fit: NDArray[np.bool_] = self.used & ~self.held_out
        return fit


@dataclass(frozen=True)
class TaskData:
    """The samples of a task as the model sees them. *is_many*: samples have several labels, and are judged by mAP."""

    workspace: Store
    model_ref: ModelRef
    task: Task
    class_names: tuple[str, ...]
    is_many: bool

    @property
    def num_classes(self) -> int:
        """Of both datasets."""
        return len(self.class_names)

    def prepare(self, specs: Sequence[FeatureSpec]) -> None:
        """Have *specs* of both datasets computed, each in one forward pass."""
        for dataset in (self.task.train, self.task.test):
            prepare_features(self.workspace, self.model_ref, dataset, specs)

    def train(self, spec: FeatureSpec) -> TrainPart:
        """The training samples: all, or the 1,000 of VTAB-1k."""
        if self.task.split == "vtab":
            return self._vtab(spec)[0]
        features = load_features(self.workspace, self.model_ref, self.task.train, spec)
        return TrainPart(features.keys, self._labels(features, self.task.train), features.features)

    def choice(self, train: TrainPart) -> Choice:
        """The two parts of them between which settings are chosen."""
        if self.task.split == "vtab":
            return vtab_split(train, self.num_classes, allow_missing=True)[1]
        return split(train, self.task.validation)

    def test(self, spec: FeatureSpec) -> TestPart:
        """The test samples."""
        return self._test_part(load_features(self.workspace, self.model_ref, self.task.test, spec))

    def train_stream(self, spec: FeatureSpec) -> Iterator[tuple[TrainPart, NDArray[np.bool_]]]:
        """The training samples part by part, and which of them are held out."""
        if self.task.split == "vtab":
            train, choice = self._vtab(spec)
            yield train, np.arange(len(train.keys)) >= len(choice.fit.keys)
            return
        for part in iterate_features(self.workspace, self.model_ref, self.task.train, spec):
            train = TrainPart(part.keys, self._labels(part, self.task.train), part.features)
            yield train, held_out(part.keys, self.task.validation)

    def test_stream(self, spec: FeatureSpec) -> Iterator[TestPart]:
        """The test samples part by part."""
        for part in iterate_features(self.workspace, self.model_ref, self.task.test, spec):
            yield self._test_part(part)

    def masks(self) -> Masks:
        """Which samples of the training dataset are used at all, and which of those are held out."""
        with closing(DatasetReader(self.workspace, self.task.train)) as reader:
            keys = _keys(reader)
            if self.task.split == "share":
                return Masks(np.ones(len(keys), dtype=bool), validation_mask(keys, self.task.validation))
            order = vtab_order(keys)
            self._check_coverage(reader, order[:VTAB_TRAIN])
        used, validation = np.zeros((2, len(keys)), dtype=bool)
        used[order], validation[order[VTAB_TRAIN:]] = True, True
        return Masks(used, validation)

    def share(self, labels: Labels, scores_NK: NDArray[Any]) -> float:
        """The score that candidates are compared by: top-1, or mAP."""
        if self.is_many:
            return mean_average_precision(scores_NK, labels)
        return float((scores_NK.argmax(axis=1) == labels).mean())

    def outcomes(self, keys: tuple[str, ...], labels: Labels, scores_NK: NDArray[Any], *, calibrated: bool) -> Outcomes:
        """Per-sample outcomes of the scores.

        *calibrated*: scores are probabilities; with one label of exclusive classes, with several of each class alone.
        """
        if self.is_many:
            return of_label_scores(keys, labels, scores_NK, calibrated=calibrated)
        return (of_probabilities if calibrated else of_scores)(keys, labels, scores_NK)

    def oracle(self, test: TestPart, shares: Sequence[float], scores_of: Callable[[int], NDArray[Any]]) -> Metric:
        """The best test score of all candidates, chosen with knowledge of the test samples: never a result.

        *shares*: the test score of each candidate, the one that was chosen honestly among them; *scores_of* returns the
        scores (N, K) of a candidate, and is called only where samples have several labels.
        """
        best = int(np.argmax(np.asarray(shares)))
        if self.is_many:
            return oracle([headline(self.outcomes(test.keys, test.labels, scores_of(best), calibrated=False))])
        return oracle([share_of("top1", round(float(shares[best]) * len(test.keys)), len(test.keys))])

    def require_one_label(self, evaluator: str) -> None:
        """Raise InputError where samples have several labels."""
        if self.is_many:
            raise InputError(
                f"{evaluator}: samples of {self.task.train} have several labels", "use linear, ridge, knn or finetune"
            )

    def _vtab(self, spec: FeatureSpec) -> tuple[TrainPart, Choice]:
        """The samples of VTAB-1k, those to fit on first; no others are in memory."""
        with closing(DatasetReader(self.workspace, self.task.train)) as reader:
            keys = _keys(reader)
        is_used = np.zeros(len(keys), dtype=bool)
        is_used[vtab_order(keys)] = True
        used_keys, labels, features, start = [], [], [], 0
        for part in iterate_features(self.workspace, self.model_ref, self.task.train, spec):
            rows = np.flatnonzero(is_used[start : start + len(part.keys)])
            start += len(part.keys)
            used_keys += [part.keys[row] for row in rows]
            labels.append(self._labels(part, self.task.train)[rows])
            features.append(part.features[rows])
        train = TrainPart(tuple(used_keys), np.concatenate(labels), np.concatenate(features))
        return vtab_split(train, self.num_classes, allow_missing=self.task.allow_missing_classes)[:2]

    def _check_coverage(self, reader: DatasetReader, rows: NDArray[np.int64]) -> None:
        """Raise InputError for classes without a sample among *rows* of the dataset, unless the task allows it."""
        ends = np.cumsum(reader.shards.sizes)
        shards = np.searchsorted(ends, rows, side="right")
        rows_in_shards = rows - (ends - reader.shards.sizes)[shards]
        members = [reader.member(*ref) for ref in zip(shards.tolist(), rows_in_shards.tolist(), strict=True)]
        labels = np.array([label for member in members for label in member.labels], dtype=np.int64)
        check_coverage(labels, self.num_classes, allow_missing=self.task.allow_missing_classes)

    def _test_part(self, features: Features) -> TestPart:
        return TestPart(features.keys, self._labels(features, self.task.test), features.features)

    def _labels(self, features: Features, dataset: str) -> Labels:
        """(N,) class numbers, or (N, K) of 0 and 1. Raises InputError where samples have no label."""
        if self.is_many:
            return features.targets(self.num_classes)
        num_unlabelled = int((features.labels < 0).sum())
        if num_unlabelled:
            raise InputError(f"{num_unlabelled} samples of {dataset} have no label", "judge on datasets with labels")
        return features.labels


def open_task(workspace: Store, planned: PlannedEvaluation) -> TaskData:
    """Open the task of *planned*. Raises InputError when its datasets have other classes, or share an image."""
    task = planned.task
    train, test = (read_dataset_card(workspace, name) for name in (task.train, task.test))
    if train.class_names != test.class_names:
        raise InputError(f"task {planned.key.task}: {task.train} and {task.test} have other classes")
    refuse_leak(workspace, planned.key.task, task)
    is_many = _has_several(train) or _has_several(test)
    return TaskData(workspace, planned.model_ref, task, train.class_names, is_many)


def _keys(reader: DatasetReader) -> tuple[str, ...]:
    return tuple(key for shard in range(len(reader.shards)) for key in reader.keys(shard))


def _has_several(card: DatasetCard) -> bool:
    return card.statistics.num_multi_label > 0
