"""``vitpipe verify``: is what the cards of a workspace say what is stored?"""

from __future__ import annotations

from pipeline.base.errors import InputError
from pipeline.base.progress import Progress
from pipeline.base.store import Store
from pipeline.base.store.opening import Stores, open_store
from pipeline.corpus.stage import MANIFEST, verify_staged
from pipeline.records.dataset import CARD, dataset_prefix
from pipeline.shard.verify import Depth, verify_dataset

_CORPORA = "corpora/"  # leads the name of a staged corpus, so that a dataset may have the same


def verify(
    workspace: Store, stores: Stores, names: list[str], depth: Depth, progress: Progress
) -> dict[str, list[str]]:
    """The problems of each dataset or corpus in *names*, or of all. Raises InputError when there is none of that name.

    Of a corpus ``fast`` compares sizes; the other depths compare digests.
    """
    present = [*dataset_names(workspace), *corpus_names(workspace)]
    missing = sorted(set(names) - set(present))
    if missing or not present:
        what = f"no dataset {missing[0]!r}" if missing else "no datasets"
        known = f"there are: {', '.join(present)}" if present else "shard one first"
        raise InputError(f"{what} in {workspace.uri}", known)
    return {name: _verify_one(workspace.uri, stores, name, depth, progress) for name in names or present}


def _verify_one(workspace: str, stores: Stores, name: str, depth: Depth, progress: Progress) -> list[str]:
    if name.startswith(_CORPORA):
        return verify_staged(
            open_store(f"{workspace}/{name}", stores), "sizes" if depth == "fast" else "digests", progress
        )
    return verify_dataset(open_store(f"{workspace}/{dataset_prefix(name)}", stores), depth, progress)


def corpus_names(workspace: Store) -> list[str]:
    """``corpora/NAME`` of the staged corpora that have a manifest."""
    keys = (info.key for info in workspace.list(_CORPORA))
    return sorted(key.rpartition("/")[0] for key in keys if key.endswith(f"/{MANIFEST}") and key.count("/") == 2)


def dataset_names(workspace: Store) -> list[str]:
    """Names of the datasets that have a card."""
    keys = (info.key for info in workspace.list("datasets/"))
    return sorted(key.split("/")[1] for key in keys if key.endswith(f"/{CARD}") and key.count("/") == 2)


if __name__ == "__main__":
    from jobs.cli import main

    main(["verify"])
