"""Which features of a network, and how they are stored: in parts, each a fixed range of samples of the dataset as one
file.

::

    features/<id>/part-00000.parquet   key, labels, features (D little-endian float32 as one binary value)
                  features.json        the card, last: the identity of the features, and the digests of the parts

The footer of a part holds the identity of the features, its range, and a digest of its content. By that alone a part
from a killed extraction is used again or computed again. Fixed-size binary is read ten times as fast as lists of
floats.

Shapes: N samples, D features.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.base.digests import canonical_json, fingerprint
from pipeline.base.disk_table import read_parquet
from pipeline.base.errors import DamageError
from pipeline.evaluate.model_ref import ModelRef
from pipeline.evaluate.recipe import FeatureDtype, Layer, Pooling
from pipeline.records.record import Record

PART_SAMPLES = 4096  # most samples of a part
_PART_BYTES = 64_000_000  # raw pixels are wide: their parts have fewer samples
_BATCH_SAMPLES = 64  # parts begin at a batch, so that a sample's batch is the same whoever computes its part
_FOOTER = b"vitpipe"  # key of the parquet metadata
_SCHEMA_VERSION = 2  # part of the identity of features


@dataclass(frozen=True)
class FeatureSpec:
    """Features of one layer.

    *layer*: ``head-input`` is what the head sees (with the pre-logits layer, where there is one); ``last`` is after the
    last norm; numbers are blocks, 1 the first and -1 the last, through the last norm as DINOv2 does (so that -1 is
    ``last``). *pooling*: the class token, the average of the patches, both side by side, or as the model does it.
    *dtype*: ``bfloat16`` is autocast; what is stored is float32.
    """

    layer: Layer = "head-input"
    pooling: Pooling = "model"
    dtype: FeatureDtype = "float32"

    def identity(self, model_ref: ModelRef, dataset_digest: str) -> dict[str, Any]:
        """All that the features depend on; its fingerprint is their id."""
        return {
            "schema": _SCHEMA_VERSION,
            "weights": model_ref.weights_digest,
            "layer": "last" if self.layer == -1 else self.layer,
            "pooling": self.pooling,
            "transform": model_ref.transform,
            "dtype": self.dtype,
            "dataset": dataset_digest,
        }

    def prefix(self, model_ref: ModelRef, dataset_digest: str) -> str:
        """The folder that they are stored in."""
        return f"features/{fingerprint(self.identity(model_ref, dataset_digest))}"


HEAD_INPUT = FeatureSpec()


def specs_for(
    model_ref: ModelRef, layers: Iterable[Layer], pooling: Pooling, dtype: FeatureDtype = "float32"
) -> tuple[FeatureSpec, ...]:
    """One for each of *layers*, each once. Raw pixels have one layer, the pixels; ``head-input`` is pooled already."""
    if model_ref.is_pixels:
        return (HEAD_INPUT,)
    specs = (FeatureSpec(layer, "model" if layer == "head-input" else pooling, dtype) for layer in layers)
    return tuple(dict.fromkeys(specs))


class FeaturePart(Record):
    """One stored part."""

    name: str
    sha256: str
    num_samples: int


class FeatureCard(Record):
    """Written last: without it the features do not exist."""

    schema_version: Literal[2] = 2
    made_of: dict[str, Any]
    width: int
    parts: tuple[FeaturePart, ...]

    @property
    def num_samples(self) -> int:
        """In all parts."""
        return sum(part.num_samples for part in self.parts)


@dataclass(frozen=True)
class Features:
    """features float32 (N, D) and keys (N) of samples. Sample i has the labels ``values[starts[i]:starts[i + 1]]``."""

    features: NDArray[np.float32]
    keys: tuple[str, ...]
    starts: NDArray[np.int64]
    values: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The first label of each sample, -1 for none."""
        labels = np.full(len(self.keys), -1, np.int64)
        is_labelled = np.diff(self.starts) > 0
        labels[is_labelled] = self.values[self.starts[:-1][is_labelled]]
        return labels

    def targets(self, num_classes: int) -> NDArray[np.uint8]:
        """(N, num_classes) of 0 and 1."""
        targets = np.zeros((len(self.keys), num_classes), np.uint8)
        targets[np.repeat(np.arange(len(self.keys)), np.diff(self.starts)), self.values] = 1
        return targets


@dataclass(frozen=True)
class Span:
    """Part *number*: samples from *start* to before *stop*."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"part-{self.number:05d}.parquet"

    def batches(self) -> list[tuple[int, int]]:
        """The first sample of each batch, and the one after its last."""
        starts = range(self.start, self.stop, _BATCH_SAMPLES)
        return [(start, min(start + _BATCH_SAMPLES, self.stop)) for start in starts]


def plan_spans(num_samples: int, num_wide: int = 0) -> list[Span]:
    """The parts of a dataset; *num_wide*: features of a sample, where they are many."""
    most = min(PART_SAMPLES, max(_BATCH_SAMPLES, _PART_BYTES // (4 * num_wide))) if num_wide else PART_SAMPLES
    most = max(_BATCH_SAMPLES, most - most % _BATCH_SAMPLES)
    return [
        Span(number, start, min(start + most, num_samples)) for number, start in enumerate(range(0, num_samples, most))
    ]


def pack_part(part: Features, identity: dict[str, Any], span: Span) -> bytes:
    """The bytes of its file; equal parts give equal bytes."""
    count, width = part.features.shape
    data = np.ascontiguousarray(part.features, dtype="<f4")
    footer = _footer(identity, span) | {"content": _content(part)}
    table = pa.table(
        {
            "key": pa.array(part.keys, pa.string()),
            "labels": pa.ListArray.from_arrays(part.starts.astype(np.int32), pa.array(part.values, pa.int32())),
            "features": pa.Array.from_buffers(pa.binary(4 * width), count, [None, pa.py_buffer(data)]),
        }
    ).replace_schema_metadata({_FOOTER: canonical_json(footer)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return sink.getvalue()


def unpack_part(data: bytes, identity: dict[str, Any], span: Span, key: str) -> Features:
    """The features of the part *key*. Raises DamageError for a damaged part, and for one of other features."""
    advice = rebuild_advice(key.rpartition("/")[0])
    try:
        table = read_parquet(data)
        footer = json.loads(table.schema.metadata[_FOOTER])
        part = _from_table(table)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        raise DamageError(f"{key} cannot be read", advice) from None
    if {name: value for name, value in footer.items() if name != "content"} != _footer(identity, span):
        raise DamageError(f"{key} is of something else", advice)
    if footer.get("content") != _content(part) or len(part.keys) != span.stop - span.start:
        raise DamageError(f"{key}: its content is not what its footer says", advice)
    return part


def rebuild_advice(prefix: str) -> str:
    """The way out that the error of damaged features under *prefix* names."""
    return f"remove {prefix} to have it made again"


def _footer(identity: dict[str, Any], span: Span) -> dict[str, Any]:
    return {"made_of": identity, "part": span.number, "start": span.start, "stop": span.stop}


def _content(part: Features) -> str:
    digest = hashlib.sha256()
    for piece in (part.features.astype("<f4", copy=False), part.starts.astype("<i8"), part.values.astype("<i8")):
        digest.update(np.ascontiguousarray(piece).data if piece.size else b"")
    digest.update("\n".join(part.keys).encode())
    return digest.hexdigest()


def _from_table(table: pa.Table) -> Features:
    column = table["features"].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    width = column.type.byte_width // 4
    values = np.frombuffer(column.buffers()[1], "<f4", len(column) * width, column.offset * width * 4)
    labels = table["labels"].combine_chunks()
    labels = labels.chunk(0) if isinstance(labels, pa.ChunkedArray) else labels
    starts = labels.offsets.to_numpy().astype(np.int64)
    return Features(
        values.astype(np.float32, copy=False).reshape(len(column), width),
        tuple(table["key"].to_pylist()),
        starts - starts[0],
        labels.flatten().to_numpy().astype(np.int64),
    )
