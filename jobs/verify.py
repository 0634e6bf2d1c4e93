"""``vitpipe verify``: is what the cards of a workspace say what is stored?"""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.base.console import make_progress, print_result, print_text
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Json, Workspace, require_workspace, stores_of
from pipeline.base.errors import FailedError, InputError
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store, Stores
from pipeline.corpus.staging.manifest import CORPORA, list_corpora
from pipeline.corpus.staging.verify import verify_staged
from pipeline.records.dataset import dataset_prefix, list_datasets
from pipeline.shard.verify import Depth, verify_dataset


def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="datasets, and corpora/NAME for staged ones; default: all of them")
    ] = None,
    workspace: Workspace = None,
    fast: Annotated[bool, typer.Option("--fast", help="cards, tables and sizes only")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="also decode every sample, and read with stock webdataset")
    ] = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare datasets and staged corpora with their cards: every byte by default. Names damage, and exits 1."""
    depth: Depth = "full" if full else "fast" if fast else "bytes"
    uri, stores = require_workspace(workspace), stores_of(workspace, endpoint)
    problems = run_verify(open_store(uri, stores), stores, names or [], depth, make_progress())
    lines = [f"{name}: {problem}" for name, rows in problems.items() for problem in rows]
    result = {"workspace": uri, "depth": depth, "problems": problems}
    print_result(as_json, result, lambda: print_text("\n".join(lines) or f"whole ({depth}): {', '.join(problems)}"))
    if lines:
        raise FailedError(f"{len(lines)} problems; first: {lines[0]}", "shard the dataset again, or stage the corpus")


def run_verify(
    workspace: Store, stores: Stores, names: list[str], depth: Depth, progress: Progress
) -> dict[str, list[str]]:
    """The problems of each dataset or corpus in *names*, or of all. Raises InputError when there is none of that name.

    Of a corpus ``fast`` compares sizes; the other depths compare digests.
    """
    present = [*list_datasets(workspace), *list_corpora(workspace)]
    missing = sorted(set(names) - set(present))
    if missing or not present:
        problem = f"no dataset {missing[0]!r}" if missing else "no datasets"
        known = f"there are: {', '.join(present)}" if present else "shard one first"
        raise InputError(f"{problem} in {workspace.uri}", known)
    return {name: _problems(workspace.uri, stores, name, depth, progress) for name in names or present}


def _problems(workspace: str, stores: Stores, name: str, depth: Depth, progress: Progress) -> list[str]:
    """*name* is a dataset's; one that begins with ``corpora/`` is a corpus's, as a dataset may have the same name."""
    if name.startswith(CORPORA):
        corpus = open_store(f"{workspace}/{name}", stores)
        return verify_staged(corpus, "sizes" if depth == "fast" else "digests", progress)
    return verify_dataset(open_store(f"{workspace}/{dataset_prefix(name)}", stores), depth, progress)


if __name__ == "__main__":
    main(verify)
