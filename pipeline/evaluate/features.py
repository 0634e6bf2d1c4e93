"""Features once per (weights, transform, dtype, dataset), stored part by part, shared by every probe.

::

    features/<id>/part-00000.safetensors   features float32 (n, D), labels int64 (n,), keys as metadata
                  features.json            what they are of, and the parts; last
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.store import Store
from pipeline.evaluate.subject import Subject, features_of, load_network
from pipeline.records.record import Record, read_record
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.passes import each_once

_BATCH = 250
_PART_SAMPLES = 20_000


class FeaturePart(Record):
    """One stored part."""

    name: str
    sha256: str
    num_samples: int


class FeatureCard(Record):
    """Written last: without it the features do not exist."""

    schema_version: Literal[1] = 1
    made_of: dict[str, Any]
    parts: tuple[FeaturePart, ...]


@dataclass(frozen=True)
class Features:
    """features float32 (N, D), labels int64 (N,), keys (N)."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    keys: tuple[str, ...]

    def take(self, chosen: NDArray[np.bool_]) -> Features:
        """The rows where *chosen* is true."""
        keys = tuple(key for key, wanted in zip(self.keys, chosen, strict=True) if wanted)
        return Features(self.features[chosen], self.labels[chosen], keys)


def load_features(workspace: Store, subject: Subject, dataset: str) -> Features:
    """The subject's features of *dataset*, computed and stored if they are not there."""
    reader = DatasetReader(workspace, dataset)
    made_of = _made_of(subject, reader.card.digest)
    prefix = f"features/{fingerprint(made_of)}"
    try:
        card = read_record(FeatureCard, workspace, f"{prefix}/features.json")
    except FileNotFoundError:
        card = _compute(workspace, subject, reader, made_of, prefix)
    reader.close()
    if card.made_of != made_of:
        raise DamageError(f"{prefix}/features.json is of something else")
    return _read(workspace, prefix, card)


def _made_of(subject: Subject, dataset_digest: str) -> dict[str, Any]:
    return {
        "weights": subject.weights_digest,
        "layer": "last",
        "pooling": "model",
        "transform": subject.transform,
        "dtype": "float32",
        "dataset": dataset_digest,
    }


def _compute(
    workspace: Store, subject: Subject, reader: DatasetReader, made_of: dict[str, Any], prefix: str
) -> FeatureCard:
    parts = []
    for number, part in enumerate(_parts(workspace, subject, reader)):
        data = _pack(part)
        name = f"part-{number:05d}.safetensors"
        workspace.put(f"{prefix}/{name}", data)
        parts.append(FeaturePart(name=name, sha256=sha256_hex(data), num_samples=len(part.keys)))
    card = FeatureCard(made_of=made_of, parts=tuple(parts))
    workspace.put_if_absent(f"{prefix}/features.json", card.to_json())
    return read_record(FeatureCard, workspace, f"{prefix}/features.json")


def _parts(workspace: Store, subject: Subject, reader: DatasetReader) -> Iterator[Features]:
    network = load_network(workspace, subject)
    pending: list[Features] = []
    for batch in each_once(reader, subject.evaluation_transform, _BATCH):
        features = features_of(network, batch.images).numpy()
        pending.append(Features(features, batch.labels.numpy(), tuple(batch.keys)))
        if sum(len(item.keys) for item in pending) >= _PART_SAMPLES:
            yield _join(pending)
            pending = []
    if pending:
        yield _join(pending)


def _join(parts: list[Features]) -> Features:
    keys = tuple(key for part in parts for key in part.keys)
    return Features(
        np.concatenate([part.features for part in parts]), np.concatenate([part.labels for part in parts]), keys
    )


def _pack(part: Features) -> bytes:
    tensors = {"features": np.ascontiguousarray(part.features), "labels": part.labels}
    return bytes(save(tensors, metadata={"keys": " ".join(part.keys)}))


def _read(workspace: Store, prefix: str, card: FeatureCard) -> Features:
    parts = []
    for part in card.parts:
        try:
            data = workspace.read(f"{prefix}/{part.name}")
        except FileNotFoundError:
            raise DamageError(f"{prefix}/{part.name} is missing", f"remove {prefix} to have it made again") from None
        if sha256_hex(data) != part.sha256:
            raise DamageError(
                f"{prefix}/{part.name}: its bytes are not those that features.json names",
                f"remove {prefix} to have it made again",
            )
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        keys = json.loads(data[8 : 8 + length])["__metadata__"]["keys"].split()
        parts.append(Features(tensors["features"], tensors["labels"], tuple(keys)))
    return _join(parts)


def single_thread() -> None:
    """One thread per actor: parallelism is over evaluations, and sums then have one order."""
    torch.set_num_threads(1)
