"""What a cluster does to ``vitpipe pretrain``: SIGTERM to one rank, ``ray job stop``, a node that is to be drained.

The rate is constant, so that the losses of a run that never ends are those of a short one, step by step.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.job_submission import JobSubmissionClient

from pipeline.base.store import Store
from pipeline.checkpoints.card import check_complete
from pipeline.checkpoints.reader import CheckpointReader
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.run import checkpoint_card_key, list_checkpoint_cards, list_steps
from tests.ranks.pretraining import Job, losses, make_workspace, recipe_of, run_through
from tests.support.cluster import ray_cluster, raylet_pid, raylets
from tests.support.command import start, vitpipe

pytestmark = pytest.mark.timeout(600)
CALM_STEPS = 300
ENDLESS: dict[str, Any] = {
    "steps": 100_000,
    "checkpoint_every": 25,
    "keep_last": 5,
    "stream": {"workers": 0, "audit": False},
    "schedule": {"decay": "constant", "warmup_steps": 2},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With the first steps of an undisturbed run, ``calm``."""
    store = make_workspace(tmp_path_factory.mktemp("workspace"))
    calm = recipe_of("calm", 1, **(ENDLESS | {"steps": CALM_STEPS}))
    assert run_through(store, (2, [Job(calm)])).ends == [""]
    return store


def test_sigterm_to_one_rank_under_ray_saves_on_all(store: Store, tmp_path: Path) -> None:
    """The process that Ray started hears it in its main thread, while another one trains."""
    recipe = written(tmp_path, store, recipe_of("hurt", 1, **ENDLESS))
    process = start("pretrain", recipe)
    try:
        _wait(lambda: store.head(checkpoint_card_key("hurt", 25)), process)
        os.kill(rank_pids(store, "hurt")[1], signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 3, err
    last = list_steps(store, "hurt")[-1]
    assert re.search(rf"run hurt was stopped by SIGTERM; .*checkpoint of step {last} (is|was) saved", err)
    assert "Traceback" not in err
    _check_whole(store, "hurt")
    _check_losses(store, "hurt", until=last)


@pytest.mark.long
@pytest.mark.parametrize("objective", ["sigmoid", "masked_patches"])
def test_the_other_objectives_learn_and_resume(store: Store, tmp_path: Path, objective: str) -> None:
    """By the command, with a rank killed after the second of four checkpoints; dropout and masks are drawn again."""
    fields: dict[str, Any] = {"objective": objective, "steps": 40, "checkpoint_every": 10}
    recipe = written(tmp_path, store, recipe_of(objective, 2, **(ENDLESS | fields)))
    fail_at = f"pretrain.rank-1.step-25:{tmp_path / 'killed'}"
    done = vitpipe("pretrain", recipe, "--json", env={"VITPIPE_FAIL_AT": fail_at})
    assert done.returncode == 0, done.stderr
    assert "died; all ranks are restarted" in done.stderr
    assert "begins at step 20 of 40" in store.read(f"runs/{objective}/logs/0002/rank-0.log").decode()
    found = losses(store, objective)
    assert sorted(found) == list(range(1, 41))
    assert {len(row) for row in found.values()} == {1}, "a step that was done twice had the same loss twice"
    values = [float.fromhex(loss) for step in sorted(found) for loss, _ in found[step]]
    assert sum(values[-5:]) < 0.95 * sum(values[:5])
    _check_whole(store, objective)


@pytest.mark.long
def test_what_ray_job_stop_ends_goes_on_when_it_is_submitted_again(store: Store, tmp_path: Path) -> None:
    """Ray kills after 3 s: the job ends with a checkpoint of its last step where that is enough, else an older one."""
    recipe = written(tmp_path, store, recipe_of("job", 1, **ENDLESS))
    with ray_cluster(2) as (_, address):
        client = JobSubmissionClient(address)
        saved, stopped = 0, list[str]()
        for attempt in (1, 2):
            told = vitpipe("submit", "pretrain", recipe, "--address", address, "--no-wait")
            assert told.returncode == 0, told.stderr
            job = _submission(client, stopped)
            _wait(lambda at=saved + 50: max(list_steps(store, "job"), default=0) >= at, _Living(client, job))  # type: ignore[misc]
            pids = rank_pids(store, "job")
            assert client.stop_job(job)
            _wait(lambda job=job: client.get_job_status(job).is_terminal())  # type: ignore[misc]
            assert client.get_job_status(job).value == "STOPPED", client.get_job_logs(job)
            _wait(lambda pids=pids: not any(psutil.pid_exists(pid) for pid in pids))  # type: ignore[misc]
            _check_whole(store, "job")
            if attempt == 2:
                assert f"run job resumes from step {saved}" in client.get_job_logs(job)
            saved = list_steps(store, "job")[-1]
            stopped.append(job)
    _check_losses(store, "job", until=saved)


@pytest.mark.long
def test_a_node_that_is_to_be_drained_is_left_with_a_checkpoint(store: Store, tmp_path: Path) -> None:
    """Three nodes, two ranks: the node of one is to go, so both begin anew on the other two, and it may go."""
    recipe = written(tmp_path, store, recipe_of("drained", 1, **ENDLESS))
    with raylets(3, 1) as cluster:
        process = start("pretrain", recipe, "--address", cluster.address)
        try:
            _wait(lambda: store.head(checkpoint_card_key("drained", 25)), process)
            parents = [psutil.Process(pid).ppid() for pid in rank_pids(store, "drained")]
            node = next(node for node in cluster.worker_nodes if raylet_pid(node) in parents)
            accepted, why = GcsClient(address=cluster.address).drain_node(
                node.node_id, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "test", 0
            )
            assert accepted, why
            _wait(lambda: len(rank_pids(store, "drained", 2)) == 2, process)
            assert raylet_pid(node) not in [psutil.Process(pid).ppid() for pid in rank_pids(store, "drained", 2)]
            cluster.remove_node(node, allow_graceful=False)
            begun = _begun(store, "drained", 2)
            _wait(lambda: list_steps(store, "drained")[-1] >= begun + 100, process)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 3, err
    assert "died" not in err
    assert begun > 25
    assert "stops at step" in store.read("runs/drained/logs/0001/rank-0.log").decode()
    _check_losses(store, "drained", until=list_steps(store, "drained")[-1])


@pytest.mark.long
def test_a_killed_head_is_told_and_the_same_command_goes_on_elsewhere(store: Store, tmp_path: Path) -> None:
    """The head's node goes with it; the ranks are on another one, and save before they end."""
    recipe = written(tmp_path, store, recipe_of("headless", 1, **ENDLESS))
    with raylets(2, 2) as cluster:
        process = start("pretrain", recipe, "--address", cluster.address)
        try:
            _wait(lambda: store.head(checkpoint_card_key("headless", 25)), process)
            head = cluster.head_node
            os.kill(int(head.all_processes["gcs_server"][0].process.pid), signal.SIGKILL)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 3, err
    assert "the head of the Ray cluster at " in err
    assert "the same command goes on" in err
    _check_whole(store, "headless")
    saved = list_steps(store, "headless")[-1]
    with raylets(1, 2) as cluster:
        process = start("pretrain", recipe, "--address", cluster.address)
        try:
            _wait(lambda: list_steps(store, "headless")[-1] >= saved + 50, process)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 3, err
    _check_losses(store, "headless", until=list_steps(store, "headless")[-1])


def written(folder: Path, store: Store, recipe: PretrainRecipe) -> Path:
    """A recipe file of the chain."""
    path = folder / f"{recipe.run}.yaml"
    path.write_text(yaml.safe_dump({"workspace": store.uri, "pretrain": recipe.model_dump(mode="json")}))
    return path


def rank_pids(store: Store, run: str, attempt: int = 0) -> list[int]:
    """Process ids of the ranks that began to train, of the newest attempt or of *attempt*."""
    logs = sorted(info.key for info in store.list(f"runs/{run}/logs/") if "/rank-" in info.key)
    newest = f"{attempt:04d}" if attempt else max(key.split("/")[3] for key in logs)
    texts = [store.read(key).decode() for key in logs if f"/{newest}/" in key]
    return [int(re.findall(r"pid (\d+)", text)[0]) for text in texts if "begins at step" in text]


def _begun(store: Store, run: str, attempt: int) -> int:
    """The step that *attempt* began at."""
    text = store.read(f"runs/{run}/logs/{attempt:04d}/rank-0.log").decode()
    return int(re.findall(r"begins at step (\d+)", text)[0])


def _submission(client: JobSubmissionClient, before: list[str]) -> str:
    """The job that was submitted as ``<fingerprint>-<attempt>`` and is not one of *before*."""
    found = [info.submission_id for info in client.list_jobs() if re.search(r"^[0-9a-f]{12}-\d+$", info.submission_id)]
    return next(name for name in found if name not in before)


class _Living:
    """A job, asked as a process is whether it has ended."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self._client, self._job = client, job

    def poll(self) -> int | None:
        return 1 if self._client.get_job_status(self._job).is_terminal() else None

    def communicate(self) -> object:
        return self._client.get_job_logs(self._job)


def _check_whole(store: Store, run: str) -> None:
    """Every checkpoint that has a card has all of its bytes, and a digest that is right."""
    for card in list_checkpoint_cards(store, run):
        assert check_complete(store, card) is None
        with CheckpointReader(store, card) as reader:
            for file in card.every_file:
                reader.verify(file)


def _check_losses(store: Store, run: str, until: int) -> None:
    """Up to step *until*, or as far as the calm run went, the losses are its losses to the last bit."""
    calm, found = losses(store, "calm"), losses(store, run)
    steps = range(1, min(until, CALM_STEPS) + 1)
    assert len(steps) >= 25
    assert {step: found.get(step) for step in steps} == {step: calm[step] for step in steps}


def _wait(condition: Callable[[], object], process: subprocess.Popen[str] | _Living | None = None) -> None:
    """Until *condition* holds, while *process* lives: it is of files in a folder, which tell no event."""
    deadline = time.monotonic() + 240
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
