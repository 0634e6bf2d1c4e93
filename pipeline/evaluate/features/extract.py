"""Missing parts are computed, part by part, while the images of the next batches are decoded; the card comes last.

Several processes may work on one dataset: each on parts of its own, or on the same ones, since a part and the card are
created once and never replaced by another whole one.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.store import Store
from pipeline.evaluate.features.forward import Forward, forward_of
from pipeline.evaluate.features.parts import (
    FeatureCard,
    FeaturePart,
    Features,
    Span,
    pack_part,
    plan_spans,
    unpack_part,
)
from pipeline.evaluate.features.spec import FeatureSpec
from pipeline.evaluate.networks import warm_network
from pipeline.evaluate.subject import Subject
from pipeline.records.dataset import DatasetCard, read_dataset_card
from pipeline.records.record import read_record
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.passes import EvaluationBatch, spans_ahead


def spans_of(subject: Subject, card: DatasetCard) -> list[Span]:
    """The parts of the subject's features of a dataset."""
    wide = 3 * subject.evaluation_transform.size**2 if subject.is_pixels else 0
    return plan_spans(card.num_samples, wide)


def missing_parts(workspace: Store, subject: Subject, dataset: str, specs: Sequence[FeatureSpec]) -> list[int]:
    """Numbers of the parts that are not stored of all *specs*: what several workers can share out between them.

    One listing for each of *specs* that has no card yet; whether a part is whole shows when the card is made.
    """
    card = read_dataset_card(workspace, dataset)
    spans, found = spans_of(subject, card), set()
    for prefix in (spec.prefix(subject, card.digest) for spec in specs):
        if workspace.head(f"{prefix}/features.json") is None:
            there = {info.key for info in workspace.list(f"{prefix}/")}
            found |= {span.number for span in spans if f"{prefix}/{span.name}" not in there}
    return sorted(found)


def compute_parts(
    workspace: Store,
    subject: Subject,
    dataset: str,
    specs: Sequence[FeatureSpec],
    numbers: Collection[int] | None = None,
) -> None:
    """Store the parts *numbers* (None: all) of all *specs*, those that are not there whole, in one pass."""
    reader = DatasetReader(workspace, dataset)
    digest = reader.card.digest
    spans = [span for span in spans_of(subject, reader.card) if numbers is None or span.number in numbers]
    wanted = {
        span: missing
        for span in spans
        if (missing := [spec for spec in specs if _stored(workspace, subject, digest, spec, span) is None])
    }
    if wanted:
        _compute(workspace, subject, reader, wanted)
    reader.close()


def finish(workspace: Store, subject: Subject, dataset: str, spec: FeatureSpec) -> FeatureCard | None:
    """Write the card, once all parts are there whole, and return it; None when some are not."""
    card = read_dataset_card(workspace, dataset)
    prefix, parts, width = spec.prefix(subject, card.digest), [], 0
    for span in spans_of(subject, card):
        stored = _stored(workspace, subject, card.digest, spec, span)
        if stored is None:
            return None
        parts.append(stored[0])
        width = stored[1]
    made = FeatureCard(made_of=spec.made_of(subject, card.digest), width=width, parts=tuple(parts))
    workspace.put_if_absent(f"{prefix}/features.json", made.to_json())
    return read_record(FeatureCard, workspace, f"{prefix}/features.json")


def single_thread() -> None:
    """One thread per actor: parallelism is over evaluations, and sums then have one order."""
    torch.set_num_threads(1)


def _stored(
    workspace: Store, subject: Subject, digest: str, spec: FeatureSpec, span: Span
) -> tuple[FeaturePart, int] | None:
    """The part as the card lists it, and its width; None when it is not there whole."""
    where = f"{spec.prefix(subject, digest)}/{span.name}"
    try:
        data = workspace.read(where)
        part = unpack_part(data, spec.made_of(subject, digest), span, where)
    except (FileNotFoundError, DamageError):
        return None
    return FeaturePart(name=span.name, sha256=sha256_hex(data), num_samples=len(part.keys)), part.features.shape[1]


def _compute(workspace: Store, subject: Subject, reader: DatasetReader, wanted: dict[Span, list[FeatureSpec]]) -> None:
    network = warm_network(workspace, subject)
    forwards: dict[tuple[FeatureSpec, ...], Forward] = {}
    places = [place for span in wanted for place in span.batches()]
    with closing(spans_ahead(reader, subject.evaluation_transform, places)) as batches:
        for span, specs in wanted.items():
            forward = forwards.setdefault(tuple(specs), forward_of(network, specs))
            parts = run(forward, itertools.islice(batches, len(span.batches())), len(specs))
            for spec, part in zip(specs, parts, strict=True):
                _put(workspace, subject, reader.card.digest, spec, span, part)


def run(forward: Forward, batches: Iterable[EvaluationBatch], num_specs: int) -> list[Features]:
    """The features of *batches*, for each of the specs that *forward* is of."""
    found: list[list[NDArray[np.float32]]] = [[] for _ in range(num_specs)]
    keys: list[str] = []
    labels: list[tuple[int, ...]] = []
    for batch in batches:
        for rows, features in zip(found, forward(batch.images), strict=True):
            rows.append(features.cpu().numpy())
        keys += batch.keys
        labels += batch.label_lists
    starts = np.cumsum([0, *map(len, labels)], dtype=np.int64)
    values = np.array([label for several in labels for label in several], dtype=np.int64)
    return [Features(np.concatenate(rows), tuple(keys), starts, values) for rows in found]


def _put(workspace: Store, subject: Subject, digest: str, spec: FeatureSpec, span: Span, part: Features) -> None:
    where, made_of = f"{spec.prefix(subject, digest)}/{span.name}", spec.made_of(subject, digest)
    data = pack_part(part, made_of, span)
    if not workspace.put_if_absent(where, data) and _stored(workspace, subject, digest, spec, span) is None:
        workspace.put(where, data)  # what stood there was damaged, or of something else
