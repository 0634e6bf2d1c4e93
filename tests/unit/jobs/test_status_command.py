"""``vitpipe status``: what a workspace holds, told without anything heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from jobs.status import status_tables
from jobs.status import workspace_status as status
from pipeline.base.store import Store, open_store
from pipeline.evaluate.discovery import plan_all, store_suite
from pipeline.evaluate.imported_weights import read_weights, store_weights
from pipeline.evaluate.worker import run_evaluation
from pipeline.records.run import Extension, checkpoint_card_key, extension_key
from tests.support.evaluations import RUN, make_workspace, suite_recipe
from tests.support.stored_models import put_network, tiny

# A process in which nothing heavy can be imported shows the status of the workspace that it is given.
LIGHT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "ray", "deepspeed", "matplotlib", "sklearn", "boto3"):
            raise ImportError(f"{name} is heavy")
sys.meta_path.insert(0, Refuse())
from jobs.cli import main
main(["status", "--json", "--workspace"])
"""


def filled(folder: Path) -> Store:
    """A run with a suite of which one evaluation is recorded, and imported weights with the same suite."""
    store = open_store(str(folder / "ws"))
    make_workspace(store, [100, 200])
    own = put_network(open_store(str(folder / "theirs")), tiny())
    store_weights(store, read_weights(store, str(folder / "theirs" / own.weights_key), "theirs"))
    for name in (RUN, "theirs"):
        store_suite(store, name, "s", suite_recipe(1))
    item, *_ = plan_all(store, RUN, [suite_recipe(1)])
    run_evaluation(store, item)
    return store


def test_status_needs_nothing_heavy(tmp_path: Path) -> None:
    filled(tmp_path)
    ended = subprocess.run([sys.executable, "-c", LIGHT, str(tmp_path / "ws")], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    suites = {one["run"]: one for one in json.loads(ended.stdout)["evaluations"]["suites"]}
    assert {run: (len(suite["done"]), len(suite["due"])) for run, suite in suites.items()} == {
        RUN: (1, 3),
        "theirs": (0, 2),
    }


def test_status_tells_of_imported_weights_and_of_longer_runs(tmp_path: Path) -> None:
    store = filled(tmp_path)
    found = status(store)
    assert [(run["steps"], run["state"]) for run in found["runs"]] == [(200, "complete")]
    (theirs,) = found["imported"]
    assert (theirs["name"], theirs["source"].startswith("file:")) == ("theirs", True)
    titles = [title for title, _, _ in status_tables(found)]
    assert titles[:4] == ["Datasets", "Runs", "Imported weights", "Evaluations: 1 recorded"]
    store.put(extension_key(RUN, 300), Extension(run=RUN, steps=300, before=200, done=200).to_json())
    assert [(run["steps"], run["state"]) for run in status(store)["runs"]] == [(300, "at step 200")]


def test_status_tells_of_a_damaged_checkpoint_and_of_all_the_rest(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.put(checkpoint_card_key(RUN, 200), store.read(checkpoint_card_key(RUN, 100)))  # another one's card
    (run,) = status(store)["runs"]
    assert (run["checkpoints"], run["damaged"], run["state"]) == ([100], [200], "at step 100; damaged: 200")
    store.put(checkpoint_card_key(RUN, 100), b"{")
    (run,) = status(store)["runs"]
    assert (run["checkpoints"], run["damaged"]) == ([], [100, 200])


def test_a_workspace_with_nothing_in_it_is_no_error(tmp_path: Path) -> None:
    found = status(open_store(str(tmp_path / "nothing")))
    assert (found["datasets"], found["runs"], found["imported"], found["evaluations"]["recorded"]) == ([], [], [], 0)
