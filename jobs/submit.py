"""``vitpipe submit``: send a stage or the whole chain to a cluster through the Ray Jobs API."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
import yaml

from jobs.base.console import make_progress, print_result, print_text
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Json, Overrides, Recipe, Workspace, recipe_changes
from jobs.base.recipe import ChainRecipe, load_chain
from pipeline.base.digests import fingerprint
from pipeline.base.errors import FailedError, InputError, RefusedError
from pipeline.base.progress import Progress
from pipeline.base.store.open import normalise_uri

_STAGES = ("run", "shard", "pretrain", "evaluate", "report")
_RECIPE = "recipe.yaml"
_AGENT_SECONDS = 60.0  # a cluster that has just started answers 500 until the agent of its head is up


def submit(
    stage: Annotated[str, typer.Argument(help="run, shard, pretrain, evaluate or report")],
    recipe: Recipe,
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="dashboard of the cluster; default: RAY_API_SERVER_ADDRESS, else local")
    ] = None,
    workspace: Workspace = None,
    wait: Annotated[bool, typer.Option(help="follow the job's log to its end")] = True,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Send a stage, or the whole chain (`run`), to a cluster as a Ray job.

    `vitpipe submit run recipe.yaml --address http://127.0.0.1:8265`
    """
    if stage not in _STAGES:
        raise InputError(f"{stage!r} cannot be submitted", f"there are: {', '.join(_STAGES)}")
    chain = load_chain(recipe, overrides or [], recipe_changes(workspace, endpoint))
    dashboard = address or os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    result = run_submit(stage, chain, dashboard, wait, make_progress())
    print_result(as_json, result, lambda: print_text(f"{result['submission_id']}: {result['status']}"))


def run_submit(stage: str, chain: ChainRecipe, address: str, wait: bool, progress: Progress) -> dict[str, Any]:
    """Submit; with *wait*, follow the job's log and raise FailedError when it fails.

    The resolved recipe travels as the job's working directory, with absolute URIs; credentials never do: the
    cluster's nodes use their own.
    """
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="vitpipe-submit-") as scratch:
        tree = _with_absolute_paths(chain)
        (Path(scratch) / _RECIPE).write_text(yaml.safe_dump(tree, sort_keys=False))
        submission = _submit(client, stage, fingerprint([stage, tree])[:12], scratch)
    progress.message(f"submitted {submission} to {address}")
    if not wait:
        return {"submission_id": submission, "status": "SUBMITTED"}
    asyncio.run(_follow(client, submission, progress))
    info = client.get_job_info(submission)
    if info.status.value != "SUCCEEDED":
        raise FailedError(
            f"job {submission} ended as {info.status.value}: {(info.message or 'no message').splitlines()[0][:300]}",
            f"its log: ray job logs {submission} --address {address}",
        )
    return {"submission_id": submission, "status": "SUCCEEDED"}


def _with_absolute_paths(chain: ChainRecipe) -> dict[str, Any]:
    """The recipe as plain JSON with every local path absolute: the job starts in another folder."""
    tree = chain.model_dump(mode="json", exclude_none=True)
    for stage in tree["shard"]:
        sources = [stage] if isinstance(stage["source"], str) else stage["source"]
        for section, key in [*((source, "source") for source in sources), (stage, "classes")]:
            if section[key] and "://" not in section[key]:
                section[key] = normalise_uri(section[key])
    return tree


def _client(address: str) -> Any:
    if urlsplit(address).scheme not in ("http", "https"):
        raise RefusedError(f"{address} is not the address of a Ray dashboard", "write it like http://127.0.0.1:8265")
    # Imported here: it takes seconds, and a refused address does without.
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise RefusedError(
            f"no Ray dashboard answers at {address} ({type(error).__name__})",
            "check --address, and RAY_AUTH_TOKEN where the cluster asks for one",
        ) from None


def _submit(client: Any, stage: str, name: str, working_dir: str) -> str:
    """Submit as ``<fingerprint>-<attempt>``: an id that was used before is an error, also after its job ended."""
    used = {info.submission_id for info in client.list_jobs()}
    attempt = 1
    while f"{name}-{attempt}" in used:
        attempt += 1
    deadline = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            submission: str = client.submit_job(
                entrypoint=f"python -m jobs.{stage} {_RECIPE}",
                submission_id=f"{name}-{attempt}",
                runtime_env={"working_dir": working_dir},
            )
            return submission
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise FailedError(f"the cluster took no job: {str(error).splitlines()[0]}") from error
            time.sleep(1)


async def _follow(client: Any, submission: str, progress: Progress) -> None:
    async for text in client.tail_job_logs(submission):
        progress.message(text.rstrip("\n"))


if __name__ == "__main__":
    main(submit)
