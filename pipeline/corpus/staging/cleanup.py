"""``vitpipe gc``: remove from a workspace what nothing names and nobody will read; first of all, tell what that is.

It knows its own prefixes and looks at nothing else; it reads no environment of a running job, so it may run at any
time, beside trainings, shardings and evaluations.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

from pipeline.base.store.protocol import Orphan, Store
from pipeline.corpus.staging.manifest import JOURNAL, MANIFEST, REQUEST
from pipeline.corpus.staging.verify import unlisted_keys


def _corpora(workspace: Store, older_than_seconds: float) -> Iterator[Orphan]:
    """Copies that were begun, and whose manifest never came. What is listed is not held: corpora are large."""
    newest: dict[str, float] = defaultdict(float)
    begun, ended = set[str](), set[str]()
    for info in workspace.list("corpora/"):
        _, name, rest = f"{info.key}/".split("/", 2)
        newest[name] = max(newest[name], info.modified)
        if rest == f"{REQUEST}/":
            begun.add(name)
        elif rest == f"{MANIFEST}/":
            ended.add(name)
    oldest = time.time() - older_than_seconds
    for name in sorted(begun - ended):
        if newest[name] < oldest:
            for info in workspace.list(f"corpora/{name}/"):
                yield Orphan(info.key, info.num_bytes, f"its {MANIFEST} never came")


def _remove_strangers(target: Store) -> None:
    for key in list(unlisted_keys(target)):
        target.delete(key)


def _tidy(target: Store, seconds: float) -> None:
    """Remove what the copy needed, and what stagers left that were killed before this one began, *seconds* ago."""
    for info in list(target.list(JOURNAL)):
        target.delete(info.key)
    target.sweep(older_than_seconds=seconds)
