"""``vitpipe verify``: is what the cards of a workspace say what is stored?"""

from __future__ import annotations

from pipeline.base.errors import InputError
from pipeline.base.progress import Progress
from pipeline.base.store import Store
from pipeline.base.store.opening import Stores, open_store
from pipeline.records.dataset import CARD, dataset_prefix
from pipeline.shard.verify import Depth, verify_dataset


def verify(
    workspace: Store, stores: Stores, names: list[str], depth: Depth, progress: Progress
) -> dict[str, list[str]]:
    """The problems of each dataset in *names*, or of all. Raises InputError when there is none of that name."""
    present = dataset_names(workspace)
    missing = sorted(set(names) - set(present))
    if missing or not present:
        what = f"no dataset {missing[0]!r}" if missing else "no datasets"
        known = f"there are: {', '.join(present)}" if present else "shard one first"
        raise InputError(f"{what} in {workspace.uri}", known)
    return {
        name: verify_dataset(open_store(f"{workspace.uri}/{dataset_prefix(name)}", stores), depth, progress)
        for name in names or present
    }


def dataset_names(workspace: Store) -> list[str]:
    """Names of the datasets that have a card."""
    keys = (info.key for info in workspace.list("datasets/"))
    return sorted(key.split("/")[1] for key in keys if key.endswith(f"/{CARD}") and key.count("/") == 2)


if __name__ == "__main__":
    from jobs.cli import main

    main(["verify"])
