"""The share of a cluster that evaluation may take beside a training: how many workers, and what each reserves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from jobs.base.ray_session import connected
from jobs.base.recipe import ChainRecipe
from jobs.evaluate import evaluate_connected
from pipeline.base.errors import RefusedError
from pipeline.base.progress import Silent
from pipeline.base.store import open_store
from pipeline.evaluate.discovery import EvaluationRequest
from pipeline.evaluate.ray_executor import ActorPool, PoolLimits
from tests.support.cluster import raylet_pid
from tests.support.evaluations import make_workspace, suite_recipe
from tests.support.scheduling import RecordingProgress, Size, schedule, workers

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def share(cluster: Cluster) -> Iterator[Any]:
    """A node with what evaluation may have, of a cluster with more."""
    node = cluster.add_node(num_cpus=2, num_gpus=1, resources={"evaluation": 1})
    cluster.wait_for_nodes()
    yield node
    cluster.remove_node(node)


@pytest.mark.long
def test_workers_reserve_their_share_and_no_more_of_them_come_up_than_it_holds(
    share: Any, cluster: Cluster, tmp_path: Path
) -> None:
    store, size = open_store(str(tmp_path)), Size(2, 1, 0)
    make_workspace(store, size.steps)
    seen: list[tuple[int, float, float]] = []

    def look(_: str) -> None:
        free = ray.available_resources()
        num_workers = len([*workers(raylet_pid(share)), *workers(raylet_pid(cluster.head_node))])
        seen.append((num_workers, free.get("evaluation", 0.0), free.get("GPU", 0.0)))

    changes = {"max_parallel": 3, "gpus": 0.5, "resources": {"evaluation": 1}}
    outcome = schedule(store, size, cluster.address, RecordingProgress(look), **changes)
    assert outcome.num_done == size.total
    assert set(seen) == {(1, 0.0, 0.5)}, "workers, and what is left to others"


def test_a_pool_has_no_more_workers_than_it_may(cluster: Cluster) -> None:
    with connected(cluster.address):
        pool = ActorPool(PoolLimits(2, cpus=0.1))
        pool.scale_to(5)
        while pool.is_starting:
            pool.wait(1.0)
            pool.scale_to(5)
        assert pool.num_idle == 2
        pool.scale_to(1)
        assert (pool.num_idle, pool.is_starting) == (1, False)
        pool.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resources": {"evaluation": 2}}, "evaluate needs 2 of 'evaluation' for each worker, the cluster has 1"),
        ({"resources": {"scoring": 1}}, "evaluate needs 1 of 'scoring' for each worker, the cluster has 0"),
        ({"gpus": 2}, "evaluate needs 2 of 'GPU' for each worker, the cluster has 1"),
        ({"cpus": 5}, "evaluate needs 5 CPUs, the cluster has 4"),
    ],
)
@pytest.mark.usefixtures("share")
def test_what_the_cluster_can_never_place_is_refused(
    changes: dict[str, Any], said: str, cluster: Cluster, tmp_path: Path
) -> None:
    recipe = suite_recipe(1, **changes)
    with connected(cluster.address), pytest.raises(RefusedError) as refused:
        evaluate_connected(
            ChainRecipe(workspace=str(tmp_path)), EvaluationRequest("made", "s", lambda: recipe), Silent()
        )
    assert refused.value.message == said
