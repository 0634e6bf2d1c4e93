"""A task opened for one evaluation: whether it may be judged at all is checked first; its parts are given as types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.store import Store
from pipeline.evaluate.due import Planned
from pipeline.evaluate.features import Features, FeatureSpec, iterate_features, load_features, prepare_features
from pipeline.evaluate.leak import refuse_shared_images
from pipeline.evaluate.metrics import Outcomes, of_label_scores, of_probabilities, of_scores
from pipeline.evaluate.metrics.multilabel import mean_average_precision
from pipeline.evaluate.split import TestPart, TrainPart, held_out
from pipeline.evaluate.subject import Subject
from pipeline.evaluate.suite import Task
from pipeline.records.dataset import DatasetCard, read_dataset_card

Labels = NDArray[Any]


@dataclass(frozen=True)
class TaskData:
    """The samples of a task as *subject* sees them. *is_many*: samples have several labels, and are judged by mAP."""

    workspace: Store
    subject: Subject
    task: Task
    num_classes: int
    is_many: bool

    def prepare(self, specs: Sequence[FeatureSpec]) -> None:
        """Have *specs* of both datasets computed, each in one forward pass."""
        for dataset in (self.task.train, self.task.test):
            prepare_features(self.workspace, self.subject, dataset, specs)

    def train(self, spec: FeatureSpec) -> TrainPart:
        """All training samples."""
        found = load_features(self.workspace, self.subject, self.task.train, spec)
        return TrainPart(found.keys, self._labels(found, self.task.train), found.features)

    def test(self, spec: FeatureSpec) -> TestPart:
        """The test samples."""
        return self._test_part(load_features(self.workspace, self.subject, self.task.test, spec))

    def train_stream(self, spec: FeatureSpec) -> Iterator[tuple[Features, Labels, NDArray[np.bool_]]]:
        """The training samples part by part: features, labels, and which of them are held out."""
        for part in iterate_features(self.workspace, self.subject, self.task.train, spec):
            yield part, self._labels(part, self.task.train), held_out(part.keys, self.task.validation)

    def test_stream(self, spec: FeatureSpec) -> Iterator[TestPart]:
        """The test samples part by part."""
        for part in iterate_features(self.workspace, self.subject, self.task.test, spec):
            yield self._test_part(part)

    def share(self, labels: Labels, scores_NK: NDArray[Any]) -> float:
        """What candidates are compared by: top-1, or mAP."""
        if self.is_many:
            return mean_average_precision(scores_NK, labels)
        return float((scores_NK.argmax(axis=1) == labels).mean())

    def outcomes(self, keys: tuple[str, ...], labels: Labels, scores_NK: NDArray[Any], *, calibrated: bool) -> Outcomes:
        """*calibrated*: scores are probabilities, of classes that exclude each other or, where many, of each alone."""
        if self.is_many:
            return of_label_scores(keys, labels, scores_NK, calibrated=calibrated)
        return (of_probabilities if calibrated else of_scores)(keys, labels, scores_NK)

    def require_one_label(self, evaluator: str) -> None:
        """Raise InputError where samples have several labels."""
        if self.is_many:
            raise InputError(
                f"{evaluator}: samples of {self.task.train} have several labels", "use linear, ridge, knn or finetune"
            )

    def _test_part(self, found: Features) -> TestPart:
        return TestPart(found.keys, self._labels(found, self.task.test), found.features)

    def _labels(self, found: Features, dataset: str) -> Labels:
        if self.is_many:
            return found.targets(self.num_classes)
        without = int((found.labels < 0).sum())
        if without:
            raise InputError(f"{without} samples of {dataset} have no label", "judge on datasets with labels")
        return found.labels


def open_task(workspace: Store, planned: Planned) -> TaskData:
    """Raises InputError when the two datasets have other classes, or share an image."""
    task = planned.task
    train, test = (read_dataset_card(workspace, name) for name in (task.train, task.test))
    if train.class_names != test.class_names:
        raise InputError(f"task {planned.key.task}: {task.train} and {task.test} have other classes")
    refuse_shared_images(workspace, task.train, task.test)
    is_many = _has_several(train) or _has_several(test)
    return TaskData(workspace, planned.subject, task, len(train.class_names), is_many)


def _has_several(card: DatasetCard) -> bool:
    return card.statistics.num_multi_label > 0
