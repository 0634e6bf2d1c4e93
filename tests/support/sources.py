"""What tests of sources look at: a corpus as plain Python values."""

from __future__ import annotations

from pathlib import Path

from pipeline.records.corpus import Corpus


def origins_of(corpus: Corpus) -> list[str]:
    """The origins of all entries, in their order."""
    return corpus.entries.table()["origin"].to_pylist()


def labels_of(corpus: Corpus) -> dict[str, list[str]]:
    """Origin -> names of its classes."""
    names = corpus.class_names
    return {row["origin"]: [names[at] for at in row["labels"]] for row in corpus.entries.table().to_pylist()}


def rejects_of(corpus: Corpus) -> list[tuple[str, str]]:
    """(origin, reason) of what was refused while listing."""
    return [(row["origin"], row["reason"]) for row in corpus.rejects.table().to_pylist()]


def images_of(corpus: Corpus) -> dict[str, bytes | None]:
    """Origin -> the bytes that the reader gives."""
    images = list(corpus.reader.read(corpus.entries.table()))
    return dict(zip(origins_of(corpus), images, strict=True))


def fill(folder: Path, *names: str) -> Path:
    """Files below *folder*, each holding its own name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder
