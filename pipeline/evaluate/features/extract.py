"""Features of a dataset: missing parts are computed and stored, then they are loaded, or read part by part.

Parts are computed one by one, while the images of the next batches are decoded; the card is written last. Several
processes may work on one dataset, on parts of their own or on the same parts: a part and the card are created once,
and only a damaged part is replaced.

Shapes: B images, S image size, N tokens of an image, D features.
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
    rebuild_advice,
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

_Forward = Callable[[Tensor], list[Tensor]]


def load_features(workspace: Store, model_ref: ModelRef, dataset: str, spec: FeatureSpec = HEAD_INPUT) -> Features:
    """The model's features of *dataset*, computed and stored if they are not there.

    Raises DamageError for stored features that are damaged or of something else, and for a damaged image.
    """
    stored = _StoredFeatures(workspace, model_ref, dataset, spec)
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
    workspace: Store, model_ref: ModelRef, dataset: str, spec: FeatureSpec = HEAD_INPUT
) -> Iterator[Features]:
    """The model's features of *dataset* part by part: one part is in memory at a time. Raises as load_features."""
    return _StoredFeatures(workspace, model_ref, dataset, spec).parts()


def has_features(workspace: Store, model_ref: ModelRef, dataset_digest: str, spec: FeatureSpec = HEAD_INPUT) -> bool:
    """True when the model's features of the dataset with that digest are stored."""
    return workspace.head(f"{spec.prefix(model_ref, dataset_digest)}/features.json") is not None


def prepare_features(workspace: Store, model_ref: ModelRef, dataset: str, specs: Sequence[FeatureSpec]) -> None:
    """Compute and store the missing ones of *specs*, all in one forward pass."""
    digest = read_dataset_card(workspace, dataset).digest
    open_specs = [spec for spec in specs if not has_features(workspace, model_ref, digest, spec)]
    missing = [spec for spec in open_specs if finish(workspace, model_ref, dataset, spec) is None]
    if missing:
        compute_parts(workspace, model_ref, dataset, missing)
    for spec in missing:
        if finish(workspace, model_ref, dataset, spec) is None:
            prefix = spec.prefix(model_ref, digest)
            raise DamageError(f"{prefix}: parts of it vanished while it was made", rebuild_advice(prefix))


def missing_parts(workspace: Store, model_ref: ModelRef, dataset: str, specs: Sequence[FeatureSpec]) -> list[int]:
    """Numbers of the parts that are not stored of all *specs*: what several workers can share out between them.

    One listing for each of *specs* that has no card yet. Parts are read only when the card is made, so a damaged part
    is not missing.
    """
    card = read_dataset_card(workspace, dataset)
    spans, missing = _spans_of(model_ref, card), set()
    for prefix in (spec.prefix(model_ref, card.digest) for spec in specs):
        if workspace.head(f"{prefix}/features.json") is None:
            stored = {info.key for info in workspace.list(f"{prefix}/")}
            missing |= {span.number for span in spans if f"{prefix}/{span.name}" not in stored}
    return sorted(missing)


def compute_parts(
    workspace: Store,
    model_ref: ModelRef,
    dataset: str,
    specs: Sequence[FeatureSpec],
    numbers: Collection[int] | None = None,
) -> None:
    """Compute and store the parts *numbers* (None: all) of all *specs* in one pass; intact stored parts stay."""
    reader = DatasetReader(workspace, dataset)
    digest = reader.card.digest
    spans = [span for span in _spans_of(model_ref, reader.card) if numbers is None or span.number in numbers]
    missing_by_span = {
        span: missing
        for span in spans
        if (missing := [spec for spec in specs if _stored(workspace, model_ref, digest, spec, span) is None])
    }
    if missing_by_span:
        _compute(workspace, model_ref, reader, missing_by_span)
    reader.close()


def finish(workspace: Store, model_ref: ModelRef, dataset: str, spec: FeatureSpec) -> FeatureCard | None:
    """Write the card and return it, once all parts are stored and intact; None when some are not."""
    card = read_dataset_card(workspace, dataset)
    prefix, parts, width = spec.prefix(model_ref, card.digest), [], 0
    for span in _spans_of(model_ref, card):
        stored = _stored(workspace, model_ref, card.digest, spec, span)
        if stored is None:
            return None
        parts.append(stored[0])
        width = stored[1]
    new_card = FeatureCard(made_of=spec.identity(model_ref, card.digest), width=width, parts=tuple(parts))
    workspace.put_if_absent(f"{prefix}/features.json", new_card.to_json())
    return read_record(FeatureCard, workspace, f"{prefix}/features.json")


def single_thread() -> None:
    """One thread per actor: parallelism is over evaluations, and sums then have one order."""
    torch.set_num_threads(1)


class _StoredFeatures:
    """Stored features of a dataset, computed first if they are missing. Raises DamageError for another card."""

    def __init__(self, workspace: Store, model_ref: ModelRef, dataset: str, spec: FeatureSpec) -> None:
        card = read_dataset_card(workspace, dataset)
        self._workspace, self._prefix = workspace, spec.prefix(model_ref, card.digest)
        self._identity = spec.identity(model_ref, card.digest)
        self._spans = _spans_of(model_ref, card)
        prepare_features(workspace, model_ref, dataset, [spec])
        self.card = read_record(FeatureCard, workspace, f"{self._prefix}/features.json")
        if self.card.made_of != self._identity or not self._fits():
            raise DamageError(f"{self._prefix}/features.json is of something else", rebuild_advice(self._prefix))

    def parts(self) -> Iterator[Features]:
        """Each part, compared with the card. Raises DamageError for a missing, damaged or replaced part."""
        for span, part in zip(self._spans, self.card.parts, strict=True):
            yield self._part(span, part.sha256)

    def _part(self, span: Span, sha256: str) -> Features:
        key = f"{self._prefix}/{span.name}"
        try:
            data = self._workspace.read(key)
        except FileNotFoundError:
            raise DamageError(f"{key} is missing", rebuild_advice(self._prefix)) from None
        if sha256_hex(data) != sha256:
            raise DamageError(f"{key}: its bytes are not those that features.json names", rebuild_advice(self._prefix))
        return unpack_part(data, self._identity, span, key)

    def _fits(self) -> bool:
        sizes = [span.stop - span.start for span in self._spans]
        return sizes == [part.num_samples for part in self.card.parts]


def _spans_of(model_ref: ModelRef, card: DatasetCard) -> list[Span]:
    """The parts of the model's features of a dataset; those of raw pixels have fewer samples."""
    wide = 3 * model_ref.evaluation_transform.size**2 if model_ref.is_pixels else 0
    return plan_spans(card.num_samples, wide)


def _stored(
    workspace: Store, model_ref: ModelRef, digest: str, spec: FeatureSpec, span: Span
) -> tuple[FeaturePart, int] | None:
    """The part as the card lists it, and its width; None when it is missing or damaged."""
    key = f"{spec.prefix(model_ref, digest)}/{span.name}"
    try:
        data = workspace.read(key)
        part = unpack_part(data, spec.identity(model_ref, digest), span, key)
    except (FileNotFoundError, DamageError):
        return None
    return FeaturePart(name=span.name, sha256=sha256_hex(data), num_samples=len(part.keys)), part.features.shape[1]


def _compute(
    workspace: Store, model_ref: ModelRef, reader: DatasetReader, missing: dict[Span, list[FeatureSpec]]
) -> None:
    network = warm_network(workspace, model_ref)
    forwards: dict[tuple[FeatureSpec, ...], _Forward] = {}
    batch_spans = [batch for span in missing for batch in span.batches()]
    with closing(prefetch_spans(reader, model_ref.evaluation_transform, batch_spans)) as batches:
        for span, specs in missing.items():
            forward = forwards.setdefault(tuple(specs), _forward_of(network, specs))
            parts = _forward_all(forward, itertools.islice(batches, len(span.batches())), len(specs))
            for spec, part in zip(specs, parts, strict=True):
                _put(workspace, model_ref, reader.card.digest, spec, span, part)


def _forward_all(forward: _Forward, batches: Iterable[EvaluationBatch], num_specs: int) -> list[Features]:
    """The features of *batches*, for each of the specs of *forward*."""
    rows_by_spec: list[list[NDArray[np.float32]]] = [[] for _ in range(num_specs)]
    keys: list[str] = []
    labels: list[tuple[int, ...]] = []
    for batch in batches:
        for rows, features in zip(rows_by_spec, forward(batch.images), strict=True):
            rows.append(features.cpu().numpy())
        keys += batch.keys
        labels += batch.label_lists
    starts = np.cumsum([0, *map(len, labels)], dtype=np.int64)
    values = np.array([label for several in labels for label in several], dtype=np.int64)
    return [Features(np.concatenate(rows), tuple(keys), starts, values) for rows in rows_by_spec]


def _put(workspace: Store, model_ref: ModelRef, digest: str, spec: FeatureSpec, span: Span, part: Features) -> None:
    key = f"{spec.prefix(model_ref, digest)}/{span.name}"
    data = pack_part(part, spec.identity(model_ref, digest), span)
    if not workspace.put_if_absent(key, data) and _stored(workspace, model_ref, digest, spec, span) is None:
        workspace.put(key, data)  # the stored part is damaged, or of something else


def _forward_of(network: ViT | PixelNetwork, specs: Sequence[FeatureSpec]) -> _Forward:
    """uint8 (B, 3, S, S) -> for each of *specs* float32 (B, D), on the network's device. No block is run twice at one
    precision. Raises InputError for a layer or pooling that the network does not have.
    """
    if isinstance(network, PixelNetwork):
        return lambda images: [network.features(normalise(images, torch.float32)) for _ in specs]
    return _NetworkForward(network, specs)


class _NetworkForward:
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
        features: dict[FeatureSpec, Tensor] = {}
        for dtype in dict.fromkeys(spec.dtype for spec in self._specs):
            pairs = [(spec, at) for spec, at in zip(self._specs, self._blocks, strict=True) if spec.dtype == dtype]
            with torch.autocast(self._device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext():
                tokens = self._network.intermediate(images, {block for _, block in pairs}, normed=True)
                features |= {spec: self._pooled(spec, tokens[block]) for spec, block in pairs}
        return [features[spec].float() for spec in self._specs]

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
    """The number of the block whose output the features are, from 1."""
    if isinstance(spec.layer, str):
        return depth
    block = depth + 1 + spec.layer if spec.layer < 0 else spec.layer
    if not 1 <= block <= depth:
        raise InputError(f"layer {spec.layer}: this network has blocks 1 to {depth}, or -{depth} to -1")
    return block
