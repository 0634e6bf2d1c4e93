"""What scheduling costs beyond computing: 200 small evaluations over 20 checkpoints, on one worker.

Ours is the whole run of the scheduler, from its first look to its last record and with the start of its worker, less
the same evaluations in a bare loop of one process; per evaluation, in a workspace on local disk. The peer is one Ray
job per evaluation, one after the other, less the same computing; a few jobs tell. Ray is up and warm for both.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from jobs.base.ray_session import connected
from pipeline.base.progress import Silent
from pipeline.base.store import Store, open_store
from pipeline.evaluate.discovery import plan_all, store_suite
from pipeline.evaluate.features import single_thread
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.scheduler import Scheduler
from pipeline.evaluate.worker import run_evaluation
from tests.bench.row import Row
from tests.bench.sharding import EVEN
from tests.support.cluster import ray_cluster
from tests.support.evaluations import RUN, make_workspace, suite_recipe

_STEPS = [100 * (number + 1) for number in range(20)]
_SEEDS = 9  # and one k-NN: ten evaluations of each checkpoint
_ROUNDS = 3
_JOBS = 5
_MOST_SECONDS = 0.3
_ONE = """
import sys
from pipeline.base.store import open_store
from pipeline.evaluate.features import single_thread
from pipeline.evaluate.worker import run_evaluation
from pipeline.evaluate.discovery import stored_suites, plan_all

store = open_store(sys.argv[1])
single_thread()
assert run_evaluation(store, plan_all(store, sys.argv[2], stored_suites(store, sys.argv[2]).values())[int(sys.argv[3])])
"""


def measure() -> list[Row]:
    """Loop and scheduler in turns, then the jobs."""
    single_thread()
    os.environ.update(EVEN)
    recipe = suite_recipe(_SEEDS, max_parallel=1, cpus=1)
    with tempfile.TemporaryDirectory(prefix="vitpipe-bench-") as name:
        loops, runs = [], []
        with connected(None):
            for number in range(_ROUNDS):
                loops.append(_loop(_workspace(Path(name) / f"loop-{number}"), recipe))
                runs.append(_schedule(_workspace(Path(name) / f"ours-{number}"), recipe))
        jobs = _jobs(_workspace(Path(name) / "jobs"), recipe)
    total = len(_STEPS) * (_SEEDS + 1)
    print(f"loop {loops}, scheduler {runs}, jobs {jobs} seconds", file=sys.stderr)
    each = statistics.median(loops) / total
    ours = statistics.median(runs) / total - each
    peer = statistics.median(jobs) - each
    told = f"{ours:.3f} s each"
    return [
        Row("beyond computing: against the most it may cost", told, f"{_MOST_SECONDS} s", _MOST_SECONDS / ours, 1.0),
        Row("beyond computing: against one Ray job per evaluation", told, f"{peer:.2f} s each", peer / ours),
    ]


def _workspace(folder: Path) -> Store:
    store = open_store(str(folder))
    make_workspace(store, _STEPS)
    return store


def _loop(store: Store, recipe: EvaluateRecipe) -> float:
    started = time.perf_counter()
    for item in plan_all(store, RUN, [recipe]):
        run_evaluation(store, item)
    return time.perf_counter() - started


def _schedule(store: Store, recipe: EvaluateRecipe) -> float:
    started = time.perf_counter()
    outcome = Scheduler(store, RUN, lambda: recipe, Silent()).run()
    seconds = time.perf_counter() - started
    if outcome.num_done != len(_STEPS) * (_SEEDS + 1):
        raise RuntimeError(f"{outcome.num_done} evaluations were done")
    return seconds


def _jobs(store: Store, recipe: EvaluateRecipe) -> list[float]:
    """Seconds of each job, from its submission to its end."""
    store_suite(store, RUN, "bench", recipe)
    seconds = []
    with ray_cluster(2) as (_, address), tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "one.py"
        script.write_text(_ONE)
        client = JobSubmissionClient(address)
        for number in range(_JOBS):
            started = time.perf_counter()
            job = client.submit_job(entrypoint=f"{sys.executable} {script} {store.uri} {RUN} {number}")
            while not client.get_job_status(job).is_terminal():
                time.sleep(0.02)
            seconds.append(time.perf_counter() - started)
            if client.get_job_status(job) != JobStatus.SUCCEEDED:
                raise RuntimeError(client.get_job_logs(job))
    return seconds
