"""``vitpipe submit``: send a stage or the whole chain to a cluster through the Ray Jobs API."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from jobs.recipe import ChainRecipe
from pipeline.base.digests import fingerprint
from pipeline.base.errors import FailedError, RefusedError
from pipeline.base.progress import Progress
from pipeline.base.store import normalise_uri

STAGES = ("run", "shard", "pretrain", "evaluate", "report")
_RECIPE = "recipe.yaml"
_AGENT_SECONDS = 60.0  # a cluster that has just started answers 500 until the agent of its head is up


def submit(stage: str, chain: ChainRecipe, address: str, wait: bool, progress: Progress) -> dict[str, Any]:
    """Submit; with *wait*, follow the job's log and raise FailedError when it fails.

    The resolved recipe travels as the job's working directory, with absolute URIs; credentials never do: the
    cluster's nodes use their own.
    """
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="vitpipe-submit-") as scratch:
        tree = absolute(chain)
        (Path(scratch) / _RECIPE).write_text(yaml.safe_dump(tree, sort_keys=False))
        submission = _submit(client, stage, fingerprint([stage, tree])[:12], scratch)
    progress.say(f"submitted {submission} to {address}")
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


def absolute(chain: ChainRecipe) -> dict[str, Any]:
    """The recipe as plain JSON with every local path absolute: the job starts in another folder."""
    tree = chain.model_dump(mode="json", exclude_none=True)
    for stage in tree["shard"]:
        places = (
            [(stage, "source")] if isinstance(stage["source"], str) else [(one, "source") for one in stage["source"]]
        )
        for holder, name in [*places, (stage, "classes")]:
            if holder[name] and "://" not in holder[name]:
                holder[name] = normalise_uri(holder[name])
    return tree


def _client(address: str) -> Any:
    if urlsplit(address).scheme not in ("http", "https"):
        raise RefusedError(f"{address} is not the address of a Ray dashboard", "write it like http://127.0.0.1:8265")
    # Imported here: it takes seconds, and a refused address does without.
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

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
        progress.say(text.rstrip("\n"))
