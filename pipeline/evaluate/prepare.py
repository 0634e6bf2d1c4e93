"""What evaluations share is prepared first, each thing once: the features of a network on a dataset.

What several evaluations want of one network and dataset is made in one pass; its parts are shared out over workers. A
preparation is only a head start: where one fails, the evaluations that wanted it try by themselves, and tell why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.base.digests import canonical_json
from pipeline.base.store import Store
from pipeline.evaluate.due import Planned
from pipeline.evaluate.evaluators import wanted_specs
from pipeline.evaluate.features import FeatureSpec, compute_parts, has_features, missing_parts, prepare_features
from pipeline.evaluate.subject import Subject

Seen = tuple[str, str]
Wanted = dict[tuple[Seen, str], dict[FeatureSpec, None]]


@dataclass(frozen=True)
class Preparation:
    """Features of *subject* on *dataset*; *part*: one part of them, None: whatever is missing, and the card."""

    subject: Subject
    dataset: str
    dataset_digest: str
    specs: tuple[FeatureSpec, ...]
    part: int | None = None

    @property
    def id(self) -> tuple[Seen, str, tuple[FeatureSpec, ...]]:
        """Tells equal ones; the same for all parts."""
        return _seen(self.subject), self.dataset_digest, self.specs


def preparations(planned: Iterable[Planned]) -> dict[str, tuple[Preparation, ...]]:
    """What each evaluation wants to be there before it begins, by its id: for those that share, the same."""
    items = list(planned)
    known: dict[tuple[str, str, bool], tuple[FeatureSpec, ...]] = {}
    wanted: Wanted = defaultdict(dict)
    sharing: list[Planned] = []
    for item in items:
        kind = (item.key.evaluator, canonical_json(item.key.settings), item.subject.is_pixels)
        specs = known[kind] if kind in known else known.setdefault(kind, wanted_specs(item))
        for digest in item.key.dataset_digests if specs else ():
            wanted[_seen(item.subject), digest] |= dict.fromkeys(specs)
        sharing += [item] if specs else []
    return {item.id: tuple(_both(item, wanted)) for item in sharing}


def _both(item: Planned, wanted: Wanted) -> Iterable[Preparation]:
    names = (item.task.train, item.task.test)
    for name, digest in zip(names, item.key.dataset_digests, strict=True):
        yield Preparation(item.subject, name, digest, tuple(wanted[_seen(item.subject), digest]))


def _seen(subject: Subject) -> Seen:
    """Weights, and how their input is made: few-shot has its own way."""
    return subject.weights_digest, canonical_json(subject.transform)


def is_prepared(workspace: Store, preparation: Preparation) -> bool:
    """True when it is there."""
    subject, digest = preparation.subject, preparation.dataset_digest
    return all(has_features(workspace, subject, digest, spec) for spec in preparation.specs)


def parts_of(workspace: Store, preparation: Preparation) -> list[int]:
    """The parts that are missing."""
    return missing_parts(workspace, preparation.subject, preparation.dataset, preparation.specs)


def prepare(workspace: Store, preparation: Preparation) -> None:
    """Make it, or its part. Runs in a worker."""
    subject, dataset, specs = preparation.subject, preparation.dataset, preparation.specs
    if preparation.part is None:
        prepare_features(workspace, subject, dataset, specs)
    else:
        compute_parts(workspace, subject, dataset, specs, [preparation.part])
