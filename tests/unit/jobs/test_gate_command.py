"""``vitpipe gate``: the exit code is the answer, and what is missing never passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.base.store import Store, open_store
from tests.support.command import vitpipe
from tests.support.evaluations import outcomes_of, pattern, put_result, put_run, weights_of
from tests.unit.jobs.conftest import Command

A, B = weights_of("good", 100), weights_of("new", 100)
NAMES = ("--baseline", "good@last", "--candidate", "new@last", "-w", "ws")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Runs "good" and "new", of which nothing is recorded yet."""
    store = open_store(str(tmp_path / "ws"))
    put_run(store, "good", [100])
    put_run(store, "new", [100])
    return store


def put_pair(store: Store, evaluator: str, a: list[bool], b: list[bool], seed: int = 0) -> None:
    """The same evaluation of both."""
    put_result(store, A, evaluator, a, seed=seed)
    put_result(store, B, evaluator, b, seed=seed)


def one_point_lower() -> tuple[list[bool], list[bool]]:
    """80.0 % and 79.0 % of 200 samples: 4 only A has right, 2 only B."""
    return pattern(both=156, only_a=4, only_b=2, neither=38)


def test_what_is_not_worse_passes(command: Command, store: Store) -> None:
    put_pair(store, "linear", *pattern(150, 2, 4, 44))
    put_pair(store, "knn", *pattern(150, 3, 3, 44))
    code, out, err = command("gate", *NAMES, "--metric", "top1", "--max-drop", "0.5")
    assert (code, err) == (0, "")
    assert "ok: linear on birds: top1 76.00 -> 77.00, better by 1.00 points" in out
    assert "passed: new@100 may replace good@100" in out
    assert command("gate", *NAMES)[0] == 0, "no drop at all is allowed by default, and there is none"


@pytest.mark.parametrize(("allowed", "code"), [("0.5", 1), ("0.99", 1), ("1", 0), ("1.5", 0)])
def test_the_measured_drop_decides(command: Command, store: Store, allowed: str, code: int) -> None:
    put_pair(store, "linear", *one_point_lower())
    put_pair(store, "knn", *pattern(150, 2, 4, 44))
    found, out, err = command("gate", *NAMES, "--max-drop", allowed)
    assert found == code
    if code:
        (said,) = err.splitlines()
        assert said.startswith("vitpipe: worse: linear on birds: top1 80.00 -> 79.00, worse by 1.00 points")
        assert "95 % interval -1.50 to 3.50" in said
        assert f"{allowed} allowed, n = 200" in said
        assert "ok: knn" in out


def test_confident_fails_only_beyond_doubt(command: Command, store: Store) -> None:
    put_pair(store, "linear", *one_point_lower())
    assert command("gate", *NAMES, "--max-drop", "0.5", "--confident")[0] == 0, "its interval reaches below"
    put_pair(store, "knn", *pattern(100, 60, 2, 38))
    code, _, err = command("gate", *NAMES, "--max-drop", "0.5", "--confident")
    assert code == 1
    assert "knn" in err
    assert "linear" not in err
    assert command("gate", *NAMES, "--max-drop", "28", "--confident")[0] == 0, "29 measured, and the interval is wide"
    assert command("gate", *NAMES, "--max-drop", "28")[0] == 1


def test_less_is_better_in_a_likelihood(command: Command, store: Store) -> None:
    put_pair(store, "linear", *pattern(150, 10, 0, 40))
    # 5 % of the samples go from probability 0.7 to 0.15 for what is true: 0.05 * ln(0.7 / 0.15) = 0.077
    assert command("gate", *NAMES, "--metric", "nll", "--max-drop", "0.07")[0] == 1
    assert command("gate", *NAMES, "--metric", "nll", "--max-drop", "0.08")[0] == 0


def test_a_missing_result_never_passes(command: Command, store: Store) -> None:
    put_pair(store, "linear", *pattern(150, 2, 4, 44))
    put_result(store, A, "knn", [True] * 200)
    code, out, err = command("gate", *NAMES, "--max-drop", "5")
    assert code == 2
    assert err == "vitpipe: missing: knn on birds: new@100 has no result to compare: the other has none\n"
    assert "passed" not in out
    assert command("gate", *NAMES, "--evaluator", "linear")[0] == 0, "it was not asked for"
    put_result(store, B, "knn", [True] * 200)
    put_result(store, B, "sgd", [True] * 200)
    assert command("gate", *NAMES, "--max-drop", "5")[0] == 0, "that the candidate has more does not matter"


def test_a_missing_seed_never_passes(command: Command, store: Store) -> None:
    for seed in (0, 1):
        put_pair(store, "fewshot", [True] * 50, [True] * 50, seed)
    put_result(store, A, "fewshot", [True] * 50, seed=2)
    code, _, err = command("gate", *NAMES, "--max-drop", "5")
    assert code == 2
    assert "fewshot on birds seeds 2: new@100 has no result to compare: the other has only seed 0, 1" in err


def test_worse_and_missing_is_worse(command: Command, store: Store) -> None:
    put_pair(store, "linear", *one_point_lower())
    put_result(store, A, "knn", [True] * 200)
    code, _, err = command("gate", *NAMES)
    assert code == 1
    assert [one.split(":")[1].strip() for one in err.splitlines()] == ["worse", "missing"]


def test_outcomes_that_are_gone_never_pass(command: Command, store: Store) -> None:
    put_pair(store, "linear", *pattern(150, 2, 4, 44))
    result = put_result(store, B, "knn", [True] * 200)
    put_result(store, A, "knn", [True] * 200)
    for info in list(store.list(f"evaluations/{result.id}/outcomes")):
        store.delete(info.key)
    code, _, err = command("gate", *NAMES, "--max-drop", "5")
    assert code == 2
    assert "missing: knn on birds: cannot be compared: evaluations/" in err


def test_what_tells_nothing_of_the_metric_is_not_missing(command: Command, store: Store) -> None:
    put_pair(store, "linear", *pattern(150, 2, 2, 46))
    put_result(store, A, "ridge", outcomes_of([True] * 20, calibrated=False))
    assert command("gate", *NAMES, "--metric", "nll")[0] == 0, "ridge has no probabilities to lose"
    assert command("gate", *NAMES, "--metric", "top1")[0] == 2
    # k-NN has no nll recorded, but its outcomes tell it
    put_result(store, A, "knn", [True] * 20)
    assert command("gate", *NAMES, "--metric", "nll")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (NAMES, "nothing to judge: no top1 of the baseline can be compared between good@100 and new@100"),
        ((*NAMES, "--metric", "ece"), "'ece' cannot be compared sample by sample - there are: top1, top5"),
        ((*NAMES, "--max-drop", "-1"), "--max-drop -1 is not 0 or more"),
        ((*NAMES, "--max-drop", "nan"), "--max-drop nan is not 0 or more"),
        (("--baseline", "nobody", "--candidate", "new", "-w", "ws"), "no run 'nobody'"),
        (("--baseline", "good@7", "--candidate", "new", "-w", "ws"), "no checkpoint good@7"),
        (("--baseline", "good", "--candidate", "new"), "which workspace?"),
    ],
)
def test_what_cannot_be_told(command: Command, store: Store, arguments: tuple[str, ...], part: str) -> None:
    code, out, err = command("gate", *arguments)
    assert (code, out) == (2, "")
    assert part in err
    assert "Traceback" not in err


def test_json_and_a_process_of_its_own(store: Store, tmp_path: Path) -> None:
    put_pair(store, "linear", *one_point_lower())
    names = (*NAMES[:-1], tmp_path / "ws")
    done = vitpipe("gate", *names, "--max-drop", "0.5", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["exit_code"], found["passed"]) == (1, 1, False)
    assert len(found["worse"]) == 1
    assert found["missing"] == []
    assert found["comparisons"][0]["difference"] == pytest.approx(-0.01)
    done = vitpipe("gate", *names, "--max-drop", "1", "--json")
    assert (done.returncode, json.loads(done.stdout)["passed"], done.stderr) == (0, True, "")
