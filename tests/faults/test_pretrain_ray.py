"""``vitpipe pretrain`` under Ray Train: a rank is killed, the command is stopped; what comes out is the calm run's."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.base.store import Store
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.run import checkpoint_card_key, list_steps
from tests.ranks.pretraining import (
    Job,
    final_weights,
    losses,
    make_workspace,
    recipe_of,
    rows,
    run_through,
)
from tests.support.cluster import raylet_pid, raylets
from tests.support.command import start, vitpipe

STEPS = 200
LONG: dict[str, Any] = {"steps": STEPS, "checkpoint_every": 25, "stream": {"workers": 0, "audit": False}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def written(folder: Path, store: Store, recipe: PretrainRecipe) -> Path:
    """A recipe file of the chain."""
    path = folder / f"{recipe.run}.yaml"
    tree = {"workspace": store.uri, "pretrain": recipe.model_dump(mode="json")}
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_ray_worker_then_sigterm_to_the_command_change_nothing(store: Store, tmp_path: Path) -> None:
    assert run_through(store, (2, [Job(recipe_of("calm", 1, **LONG))])).ends == [""]
    recipe = written(tmp_path, store, recipe_of("shaken", 1, **LONG))
    fail_at = f"pretrain.rank-1.step-60:{tmp_path / 'killed'}"
    process = start("pretrain", recipe, env={"VITPIPE_FAIL_AT": fail_at})
    try:
        _wait(lambda: store.head(checkpoint_card_key("shaken", 100)), process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    killed = int((tmp_path / "killed").read_text())
    assert process.returncode == 3, err
    assert f"pid {killed}, " in err
    assert "died; all ranks are restarted" in err
    assert "vitpipe: run shaken was stopped by SIGTERM; " in err
    steps = list_steps(store, "shaken")
    assert 100 <= steps[-1] < STEPS
    assert f"checkpoint of step {steps[-1]} " in err
    again = vitpipe("pretrain", recipe, "--json", timeout=600)
    assert again.returncode == 0, again.stderr
    assert f"run shaken resumes from step {steps[-1]}" in again.stderr
    assert json.loads(again.stdout)["checkpoints"][-1] == STEPS
    assert losses(store, "shaken") == losses(store, "calm")
    assert final_weights(store, "shaken") == final_weights(store, "calm")
    logs = {info.key.split("/", 3)[3] for info in store.list("runs/shaken/logs/")}
    assert {f"{number:04d}/rank-{rank}.log" for number in (1, 2, 3) for rank in (0, 1)} <= logs
    assert all(row.mfu and row.resident_bytes for row in rows(store, "shaken")[-5:])


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_an_elastic_run_shrinks_when_a_node_dies_and_grows_when_one_comes(tmp_path: Path) -> None:
    """Two nodes of one CPU: one is killed, the other goes on alone; a new one is taken after a minute."""
    store = make_workspace(tmp_path)
    elastic: dict[str, Any] = {"steps": 20_000, "workers": {"min": 1, "max": 2}, "max_restarts": 9}
    recipe = written(tmp_path, store, recipe_of("elastic", 1, **(LONG | elastic)))
    with raylets(2, 1) as cluster:
        nodes = sorted(cluster.worker_nodes, key=raylet_pid)
        process = start("pretrain", recipe, "--address", cluster.address)
        try:
            _wait(lambda: worlds(store) == [2] and store.head(checkpoint_card_key("elastic", 50)), process)
            os.kill(raylet_pid(nodes[0]), signal.SIGKILL)
            _wait(lambda: worlds(store)[-1] == 1 and len(list_steps(store, "elastic")) > 4, process)
            cluster.add_node(num_cpus=1)
            _wait(lambda: worlds(store)[-1] == 2, process)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=300)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 3, err
    found = losses(store, "elastic")
    assert sorted(found) == list(range(1, max(found) + 1))


def worlds(store: Store) -> list[int]:
    """The number of ranks of each attempt that began to train."""
    logs = [info.key for info in store.list("runs/elastic/logs/") if info.key.endswith("/rank-0.log")]
    found = [re.search(r"rank 0 of (\d+), .*begins at", store.read(key).decode(), re.DOTALL) for key in logs]
    return [int(match[1]) for match in found if match]


def _wait(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until *condition* holds, while *process* lives: it is of files in a folder, which tell no event."""
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
