"""Missing parts are computed, part by part, while the images of the next batches are decoded; the card comes last.

Several processes may work on one dataset: each on parts of its own, or on the same ones, since a part and the card are
created once and never replaced by another whole one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, InputError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.features.storage import (
    HEAD_INPUT,
    FeatureCard,
    FeaturePart,
    Features,
    FeatureSpec,
    Span,
    pack_part,
    plan_spans,
    unpack_part,
)
from pipeline.evaluate.model_loader import PixelNetwork, warm_network
from pipeline.evaluate.model_ref import ModelRef
from pipeline.models.vit import ViT
from pipeline.records.dataset import DatasetCard, read_dataset_card
from pipeline.records.record import read_record
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.eval_loader import EvaluationBatch, prefetch_spans
from pipeline.train.device import normalise

Forward = Callable[[Tensor], list[Tensor]]


def forward_of(network: ViT | PixelNetwork, specs: Sequence[FeatureSpec]) -> Forward:
    """uint8 (B, 3, S, S) -> for each of *specs* float32 (B, D), on the network's device. No block is run twice at one
    precision. Raises InputError for a layer or pooling that the network does not have.
    """
    if isinstance(network, PixelNetwork):
        return lambda images: [network.features(normalise(images, torch.float32)) for _ in specs]
    return _Forward(network, specs)


class _Forward:
    def __init__(self, network: ViT, specs: Sequence[FeatureSpec]) -> None:
        self._network, self._specs = network, specs
        self._device = network.norm.weight.device
        self._blocks = [_block(spec, network.config.depth) for spec in specs]
        for spec in specs:
            if "cls" in spec.pooling and network.cls is None:
                raise InputError(f"pooling {spec.pooling}: this network has no class token", "use gap, or model")

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor) -> list[Tensor]:
        images = normalise(images_BCHW.to(self._device), torch.float32)
        found: dict[FeatureSpec, Tensor] = {}
        for dtype in dict.fromkeys(spec.dtype for spec in self._specs):
            wanted = [(spec, at) for spec, at in zip(self._specs, self._blocks, strict=True) if spec.dtype == dtype]
            with torch.autocast(self._device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext():
                tokens = self._network.intermediate(images, {block for _, block in wanted}, normed=True)
                found |= {spec: self._pooled(spec, tokens[block]) for spec, block in wanted}
        return [found[spec].float() for spec in self._specs]

    def _pooled(self, spec: FeatureSpec, tokens_BND: Tensor) -> Tensor:
        if spec.layer == "head-input":
            return self._network.head_input(tokens_BND)
        has_cls = self._network.cls is not None
        pooling = ("cls" if has_cls else "gap") if spec.pooling == "model" else spec.pooling
        parts = [tokens_BND[:, 0]] if "cls" in pooling else []
        if "gap" in pooling:
            parts.append(tokens_BND[:, int(has_cls) :].mean(dim=1))
        return torch.cat(parts, dim=1)


def _block(spec: FeatureSpec, depth: int) -> int:
    """The block whose output it is, from 1."""
    if isinstance(spec.layer, str):
        return depth
    block = depth + 1 + spec.layer if spec.layer < 0 else spec.layer
    if not 1 <= block <= depth:
        raise InputError(f"layer {spec.layer}: this network has blocks 1 to {depth}, or -{depth} to -1")
    return block


def spans_of(subject: ModelRef, card: DatasetCard) -> list[Span]:
    """The parts of the subject's features of a dataset."""
    wide = 3 * subject.evaluation_transform.size**2 if subject.is_pixels else 0
    return plan_spans(card.num_samples, wide)


def missing_parts(workspace: Store, subject: ModelRef, dataset: str, specs: Sequence[FeatureSpec]) -> list[int]:
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
    subject: ModelRef,
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


def finish(workspace: Store, subject: ModelRef, dataset: str, spec: FeatureSpec) -> FeatureCard | None:
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
    workspace: Store, subject: ModelRef, digest: str, spec: FeatureSpec, span: Span
) -> tuple[FeaturePart, int] | None:
    """The part as the card lists it, and its width; None when it is not there whole."""
    where = f"{spec.prefix(subject, digest)}/{span.name}"
    try:
        data = workspace.read(where)
        part = unpack_part(data, spec.made_of(subject, digest), span, where)
    except (FileNotFoundError, DamageError):
        return None
    return FeaturePart(name=span.name, sha256=sha256_hex(data), num_samples=len(part.keys)), part.features.shape[1]


def _compute(workspace: Store, subject: ModelRef, reader: DatasetReader, wanted: dict[Span, list[FeatureSpec]]) -> None:
    network = warm_network(workspace, subject)
    forwards: dict[tuple[FeatureSpec, ...], Forward] = {}
    places = [place for span in wanted for place in span.batches()]
    with closing(prefetch_spans(reader, subject.evaluation_transform, places)) as batches:
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


def _put(workspace: Store, subject: ModelRef, digest: str, spec: FeatureSpec, span: Span, part: Features) -> None:
    where, made_of = f"{spec.prefix(subject, digest)}/{span.name}", spec.made_of(subject, digest)
    data = pack_part(part, made_of, span)
    if not workspace.put_if_absent(where, data) and _stored(workspace, subject, digest, spec, span) is None:
        workspace.put(where, data)  # what stood there was damaged, or of something else


def has_features(workspace: Store, subject: ModelRef, dataset_digest: str, spec: FeatureSpec = HEAD_INPUT) -> bool:
    """True when the subject's features of the dataset with that digest are stored."""
    return workspace.head(f"{spec.prefix(subject, dataset_digest)}/features.json") is not None


def prepare_features(workspace: Store, subject: ModelRef, dataset: str, specs: Sequence[FeatureSpec]) -> None:
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


def load_features(workspace: Store, subject: ModelRef, dataset: str, spec: FeatureSpec = HEAD_INPUT) -> Features:
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
    workspace: Store, subject: ModelRef, dataset: str, spec: FeatureSpec = HEAD_INPUT
) -> Iterator[Features]:
    """The same part by part: one is in memory at a time."""
    return _Stored(workspace, subject, dataset, spec).parts()


class _Stored:
    """Features that are stored by now."""

    def __init__(self, workspace: Store, subject: ModelRef, dataset: str, spec: FeatureSpec) -> None:
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
