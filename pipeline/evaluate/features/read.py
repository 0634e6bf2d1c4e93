"""Features whole, or part by part where they are too many to be held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.store import Store
from pipeline.evaluate.features.extract import compute_parts, finish, spans_of
from pipeline.evaluate.features.parts import FeatureCard, Features, Span, unpack_part
from pipeline.evaluate.features.spec import HEAD_INPUT, FeatureSpec
from pipeline.evaluate.subject import Subject
from pipeline.records.dataset import read_dataset_card
from pipeline.records.record import read_record


def has_features(workspace: Store, subject: Subject, dataset_digest: str, spec: FeatureSpec = HEAD_INPUT) -> bool:
    """True when the subject's features of the dataset with that digest are stored."""
    return workspace.head(f"{spec.prefix(subject, dataset_digest)}/features.json") is not None


def prepare_features(workspace: Store, subject: Subject, dataset: str, specs: Sequence[FeatureSpec]) -> None:
    """Have all *specs* computed and stored, those that are missing in one forward pass."""
    digest = read_dataset_card(workspace, dataset).digest
    open_specs = [spec for spec in specs if not has_features(workspace, subject, digest, spec)]
    missing = [spec for spec in open_specs if finish(workspace, subject, dataset, spec) is None]
    if missing:
        compute_parts(workspace, subject, dataset, missing)
    for spec in missing:
        if finish(workspace, subject, dataset, spec) is None:
            prefix = spec.prefix(subject, digest)
            raise DamageError(f"{prefix}: parts of it vanished while it was made", _way_out(prefix))


def load_features(workspace: Store, subject: Subject, dataset: str, spec: FeatureSpec = HEAD_INPUT) -> Features:
    """The subject's features of *dataset*, computed and stored if they are not there.

    Raises DamageError for stored ones that are damaged or of something else, and for an image that is.
    """
    stored = _Stored(workspace, subject, dataset, spec)
    features = np.empty((stored.card.num_samples, stored.card.width), np.float32)
    keys: list[str] = []
    starts, values, done = [np.zeros(1, np.int64)], [np.empty(0, np.int64)], 0
    for part in stored.parts():
        features[len(keys) : len(keys) + len(part.keys)] = part.features
        keys += part.keys
        starts.append(part.starts[1:] + done)
        values.append(part.values)
        done += len(part.values)
    return Features(features, tuple(keys), np.concatenate(starts), np.concatenate(values))


def iterate_features(
    workspace: Store, subject: Subject, dataset: str, spec: FeatureSpec = HEAD_INPUT
) -> Iterator[Features]:
    """The same part by part: one is in memory at a time."""
    return _Stored(workspace, subject, dataset, spec).parts()


class _Stored:
    """Features that are stored by now."""

    def __init__(self, workspace: Store, subject: Subject, dataset: str, spec: FeatureSpec) -> None:
        card = read_dataset_card(workspace, dataset)
        self._workspace, self._prefix = workspace, spec.prefix(subject, card.digest)
        self._made_of = spec.made_of(subject, card.digest)
        self._spans = spans_of(subject, card)
        prepare_features(workspace, subject, dataset, [spec])
        self.card = read_record(FeatureCard, workspace, f"{self._prefix}/features.json")
        if self.card.made_of != self._made_of or not self._fits():
            raise DamageError(f"{self._prefix}/features.json is of something else", _way_out(self._prefix))

    def parts(self) -> Iterator[Features]:
        """Each of them, compared with the card. Raises DamageError."""
        for span, part in zip(self._spans, self.card.parts, strict=True):
            yield self._part(span, part.sha256)

    def _part(self, span: Span, sha256: str) -> Features:
        where = f"{self._prefix}/{span.name}"
        try:
            data = self._workspace.read(where)
        except FileNotFoundError:
            raise DamageError(f"{where} is missing", _way_out(self._prefix)) from None
        if sha256_hex(data) != sha256:
            raise DamageError(f"{where}: its bytes are not those that features.json names", _way_out(self._prefix))
        return unpack_part(data, self._made_of, span, where)

    def _fits(self) -> bool:
        sizes = [span.stop - span.start for span in self._spans]
        return sizes == [part.num_samples for part in self.card.parts]


def _way_out(prefix: str) -> str:
    return f"remove {prefix} to have it made again"
