"""Leftovers of copies: what a stage removes at its end, and what `gc` may remove."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

from pipeline.base.store.protocol import Orphan, Store
from pipeline.corpus.staging.manifest import CORPORA, JOURNAL, MANIFEST, REQUEST, corpus_prefix
from pipeline.corpus.staging.verify import unlisted_keys


def find_unfinished(workspace: Store, older_than_seconds: float) -> Iterator[Orphan]:
    """Objects of copies that were begun, whose manifest never came, and that nothing was added to for that long.

    Memory does not grow with their number: corpora are large.
    """
    newest: dict[str, float] = defaultdict(float)
    started, finished = set[str](), set[str]()
    for info in workspace.list(CORPORA):
        _, name, rest = f"{info.key}/".split("/", 2)
        newest[name] = max(newest[name], info.modified)
        if rest == f"{REQUEST}/":
            started.add(name)
        elif rest == f"{MANIFEST}/":
            finished.add(name)
    oldest = time.time() - older_than_seconds
    for name in sorted(started - finished):
        if newest[name] < oldest:
            for info in workspace.list(f"{corpus_prefix(name)}/"):
                yield Orphan(info.key, info.num_bytes, f"its {MANIFEST} never came")


def remove_unlisted(target: Store) -> None:
    """Remove the objects below data/ that the manifest's table does not name."""
    for key in list(unlisted_keys(target)):
        target.delete(key)


def remove_leftovers(target: Store, seconds: float) -> None:
    """Remove the journal, and what stagers left that were killed before this one began, *seconds* ago."""
    for info in list(target.list(JOURNAL)):
        target.delete(info.key)
    target.sweep(older_than_seconds=seconds)
