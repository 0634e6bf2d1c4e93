"""Compares what is stored with the manifest: sizes by one listing, digests by reading every byte."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from pipeline.base.errors import VitpipeError
from pipeline.base.progress import Progress
from pipeline.base.store.protocol import ObjectInfo, Store
from pipeline.corpus.staging.manifest import (
    DATA,
    MANIFEST,
    REJECTS,
    TABLE,
    CopiedObject,
    StageManifest,
    read_staged,
    table_digest,
)
from pipeline.records.record import read_record

CheckDepth = Literal["sizes", "digests"]
_PIECE_BYTES = 8 << 20  # of one read
_THREADS = 4


def verify_staged(target: Store, depth: CheckDepth, progress: Progress) -> list[str]:
    """Every problem of the corpus at *target*, one line each, with the key; empty when all is well.

    Raises FileNotFoundError when there is no manifest, DamageError when it is damaged itself.
    """
    manifest = read_record(StageManifest, target, MANIFEST)
    problems = damaged_tables(target, manifest)
    if f"{TABLE}:" in "".join(problems):
        return problems
    progress.start("verify the corpus", manifest.num_objects)
    problems += [f"{DATA}{copied.key}: {problem}" for copied, problem in damaged_objects(target, depth, progress)]
    problems += [f"{key}: the manifest does not name it" for key in unlisted_keys(target)]
    progress.finish()
    return problems


def damaged_tables(target: Store, manifest: StageManifest) -> list[str]:
    """Tables that are missing or that are not those of *manifest*."""
    problems = []
    for name in (TABLE, REJECTS):
        try:
            is_intact = table_digest(target, name) == manifest.tables.get(name)
        except FileNotFoundError:
            problems.append(f"{name}: missing")
            continue
        if not is_intact:
            problems.append(f"{name}: its bytes are not those that {MANIFEST} names")
    return problems


def damaged_objects(target: Store, depth: CheckDepth, progress: Progress) -> Iterator[tuple[CopiedObject, str]]:
    """Objects of the manifest that are missing or changed, and what is wrong with each."""
    with ThreadPoolExecutor(_THREADS) as pool:
        pending: deque[tuple[CopiedObject, Future[str]]] = deque()
        for copied, info in _paired_by_key(read_staged(target), target.list(DATA)):
            if copied is None:
                continue
            progress.advance()
            if info is None:
                yield copied, "missing"
            elif info.num_bytes != copied.num_bytes:
                yield copied, f"{info.num_bytes} bytes, the manifest says {copied.num_bytes}"
            elif depth == "digests":
                pending.append((copied, pool.submit(_damage, target, info, copied.sha256)))
            while len(pending) > 4 * _THREADS:
                yield from _with_problem(*pending.popleft())
        while pending:
            yield from _with_problem(*pending.popleft())


def unlisted_keys(target: Store) -> Iterator[str]:
    """Keys of objects below data/ that the manifest does not name."""
    for copied, info in _paired_by_key(read_staged(target), target.list(DATA)):
        if copied is None and info is not None:
            yield info.key


def _with_problem(copied: CopiedObject, problem: Future[str]) -> Iterator[tuple[CopiedObject, str]]:
    if problem.result():
        yield copied, problem.result()


def _damage(target: Store, info: ObjectInfo, sha256: str) -> str:
    digest = hashlib.sha256()
    try:
        for start in range(0, info.num_bytes, _PIECE_BYTES):
            digest.update(target.read_range(info.key, start, _PIECE_BYTES, info.etag))
    except (OSError, VitpipeError) as error:
        return f"cannot be read ({error.message if isinstance(error, VitpipeError) else type(error).__name__})"
    return "" if digest.hexdigest() == sha256 else "its bytes are not those of the manifest"


def _paired_by_key(
    named: Iterator[CopiedObject], present: Iterator[ObjectInfo]
) -> Iterator[tuple[CopiedObject | None, ObjectInfo | None]]:
    """Rows of the manifest beside objects of the same key; None where one of the two is missing."""
    copied, info = next(named, None), next(present, None)
    while copied is not None or info is not None:
        key = info.key.removeprefix(DATA) if info is not None else ""
        if info is None or (copied is not None and copied.key < key):
            yield copied, None
            copied = next(named, None)
        elif copied is None or key < copied.key:
            yield None, info
            info = next(present, None)
        else:
            yield copied, info
            copied, info = next(named, None), next(present, None)
