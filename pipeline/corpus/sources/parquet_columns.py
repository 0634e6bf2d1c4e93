"""Which columns of a parquet file hold images and labels, what its metadata says of classes, and labels as texts."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import InputError

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls")
_TEXTS = pa.list_(pa.string())

LabelKind = Literal["", "number", "text"]  # "": nothing but nulls


@dataclass(frozen=True)
class ParquetColumns:
    """The columns of one file, or what several have in common."""

    image: str
    label: str | None
    label_kind: LabelKind
    is_list: bool
    names: tuple[str, ...]

    def joined(self, other: ParquetColumns, first: str, key: str) -> ParquetColumns:
        """What the files *first* and *key* have in common. Raises InputError, naming both, when they differ."""
        both = f"{key} and {first}"
        if (self.image, self.label) != (other.image, other.label):
            ours, theirs = ", ".join(filter(None, (self.image, self.label))), (other.image, other.label)
            raise InputError(
                f"{both} have different columns: {', '.join(filter(None, theirs))}; {ours}",
                "shard them as separate corpora",
            )
        if self.names != other.names:
            raise InputError(f"{both} declare different class names", "shard them as separate corpora")
        if self.label_kind and other.label_kind:
            if (self.label_kind, self.is_list) != (other.label_kind, other.is_list):
                raise InputError(f"{both} hold labels of different types", "shard them as separate corpora")
            return self
        return self if self.label_kind else replace(other)


def columns_of(schema: pa.Schema, key: str) -> ParquetColumns:
    """The columns of the file *key*. Raises InputError when none holds images, or labels are of no known type."""
    images = [name for name in _IMAGE_COLUMNS if name in schema.names and _holds_images(schema.field(name).type)]
    images += [field.name for field in schema if _holds_images(field.type)]
    if not images:
        raise InputError(f"{key}: no image column", "expected 'image' as struct<bytes, path> or binary")
    label = next((name for name in _LABEL_COLUMNS if name in schema.names and name != images[0]), None)
    kind, is_list = _label_kind(schema.field(label).type, key) if label is not None else ("", False)
    return ParquetColumns(images[0], label, kind, is_list, _declared_names(schema, label, key))


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return bool(at >= 0 and _is_binary(kind.field(at).type))
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _label_kind(kind: pa.DataType, key: str) -> tuple[LabelKind, bool]:
    if _is_list(kind):
        return _label_kind(kind.value_type, key)[0], True
    if pa.types.is_dictionary(kind):
        return _label_kind(kind.value_type, key)
    if pa.types.is_null(kind):
        return "", False
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text", False
    if (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    ):
        return "number", False
    raise InputError(f"{key}: labels of type {kind} are not read", "expected numbers, strings, or lists of them")


def label_texts(labels: pa.Array) -> pa.Array:
    """Labels of any type that ``columns_of`` lets pass, as lists of texts."""
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if pa.types.is_null(labels.type):
        return pa.nulls(len(labels), _TEXTS)
    if not _is_list(labels.type):
        present = pc.is_valid(labels).to_numpy(zero_copy_only=False).astype("int32")
        starts = pa.array([0, *present.cumsum()], pa.int32())
        lists = pa.ListArray.from_arrays(starts, _texts(labels.drop_null()))
        return pc.if_else(pc.is_valid(labels), lists, pa.scalar(None, _TEXTS))
    sizes = pc.fill_null(pc.list_value_length(labels), 0).to_numpy(zero_copy_only=False)
    starts = pa.array([0, *sizes.cumsum()], pa.int32())
    lists = pa.ListArray.from_arrays(starts, _texts(pc.list_flatten(labels)))
    return pc.if_else(pc.is_valid(labels), lists, pa.scalar(None, _TEXTS))


def _texts(values: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    return values.cast(pa.string())


def _declared_names(schema: pa.Schema, label_column: str | None, key: str) -> tuple[str, ...]:
    text = (schema.metadata or {}).get(b"huggingface")
    if not text or label_column is None:
        return ()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{key}: its metadata 'huggingface' is not JSON", "mend or remove it") from None
    for name in ("info", "features", label_column):
        found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, dict):
        found = found.get("feature", found)  # of a list of labels: {"feature": {"names": ...}}
    elif isinstance(found, list) and found:
        found = found[0]  # the same, as older releases wrote it
    names = found.get("names") if isinstance(found, dict) else None
    return tuple(str(name) for name in names) if isinstance(names, list) else ()
