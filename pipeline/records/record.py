"""The base of all records, and how one is read from a store with its schema checked."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.base.errors import DamageError
from pipeline.base.store.protocol import Store


class Record(BaseModel):
    """A frozen record. Unknown fields are refused: they come from another schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def to_json(self) -> bytes:
        """The record as the bytes of its file: indented, keys in the order of the class, newline at the end."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=True) + "\n").encode()


RecordType = TypeVar("RecordType", bound=Record)


def parse_record(kind: type[RecordType], data: bytes, source_name: str) -> RecordType:
    """The *kind* in *data*, read from *source_name*.

    Raises DamageError for broken JSON, another schema version, or missing fields.
    """
    try:
        tree: Any = json.loads(data)
    except ValueError:
        raise DamageError(f"{source_name} is not valid JSON", "it was cut or overwritten; make it again") from None
    expected = kind.model_fields["schema_version"].default if "schema_version" in kind.model_fields else None
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if expected is not None and version != expected:
        raise DamageError(
            f"{source_name} has schema version {version}, this vitpipe reads {expected}", "use a matching release"
        )
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DamageError(f"{source_name}: field '{field}': {first['msg']}", "it was edited or damaged") from None


def read_record(kind: type[RecordType], store: Store, key: str) -> RecordType:
    """Read the record at *key*. Raises FileNotFoundError when there is none."""
    return parse_record(kind, store.read(key), f"{store.uri}/{key}")
