"""What is due is a pure function: each evaluation once, its id made of all that its result hangs on."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pipeline.base.config import build
from pipeline.base.errors import InputError, RecipeError
from pipeline.evaluate.ledger import EvaluationState, State
from pipeline.evaluate.model_ref import ModelRef
from pipeline.evaluate.plan import Patterns, PlannedEvaluation, due_evaluations, plan_evaluations, state_of
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.records.ledger import Claim, Failure, Owner
from pipeline.records.score import PIXELS, EvaluationKey

TRANSFORM = {"size": 8, "resize": 8, "mode": "square", "filter": "bicubic"}
CHECKPOINTS = [ModelRef(f"weights-{step}", f"key-{step}", TRANSFORM, step) for step in (0, 100, 200)]
DIGESTS = {"a-train": "1", "a-test": "2", "b-train": "3", "b-test": "4"}


def recipe(suite: list[dict[str, Any]], **changes: Any) -> EvaluateRecipe:
    """A recipe over two tasks."""
    tasks = {name: {"train": f"{name}-train", "test": f"{name}-test"} for name in ("a", "b")}
    return build(EvaluateRecipe, {"tasks": tasks, "suite": suite} | changes)


def plan(
    suite: list[dict[str, Any]], checkpoints: list[ModelRef] = CHECKPOINTS, **changes: Any
) -> list[PlannedEvaluation]:
    """What the suite asks for."""
    return plan_evaluations(checkpoints, recipe(suite, **changes), DIGESTS)


def steps(planned: list[PlannedEvaluation]) -> list[int | str | None]:
    """What each evaluation is of."""
    return ["pixels" if item.model_ref.is_pixels else item.model_ref.step for item in planned]


def test_every_checkpoint_every_task_every_seed_once() -> None:
    planned = plan([{"evaluator": "fewshot", "tasks": ["a", "b"], "seeds": [0, 1, 2]}], baselines=False)
    found = [(item.key.task, item.model_ref.step, item.key.seed) for item in planned]
    assert sorted(found) == sorted((task, step, seed) for task in "ab" for step in (100, 200) for seed in range(3))
    assert len({item.key.id for item in planned}) == len(planned) == 12


def test_it_is_pure() -> None:
    suite = [{"evaluator": "linear", "tasks": ["a"]}, {"evaluator": "knn", "tasks": ["b"]}]
    before = copy.deepcopy((CHECKPOINTS, DIGESTS))
    assert plan(suite) == plan(suite)
    assert before == (CHECKPOINTS, DIGESTS)


def test_the_same_entry_twice_is_asked_for_once() -> None:
    entry = {"evaluator": "knn", "tasks": ["a"]}
    assert plan([entry, entry]) == plan([entry])


def test_baselines_are_pixels_and_the_untrained_network() -> None:
    assert steps(plan([{"evaluator": "knn", "tasks": ["a"]}])) == ["pixels", 0, 100, 200]
    assert steps(plan([{"evaluator": "knn", "tasks": ["a"]}], baselines=False)) == [100, 200]
    assert steps(plan([{"evaluator": "classify", "tasks": ["a"]}])) == [0, 100, 200], "raw pixels have no head"
    assert steps(plan([{"evaluator": "inspect", "tasks": ["a"]}])) == [100, 200]
    (pixels, *_) = plan([{"evaluator": "finetune", "tasks": ["a"]}])
    assert (pixels.key.weights_digest, pixels.key.transform) == (PIXELS, TRANSFORM)


@pytest.mark.parametrize(("size", "seen"), [(224, (32, 37)), (28, (28, 32)), (32, (32, 37)), (33, (32, 37))])
def test_raw_pixels_are_at_most_32_of_a_side(size: int, seen: tuple[int, int]) -> None:
    transform = TRANSFORM | {"size": size, "resize": round(size * 256 / 224), "mode": "short"}
    checkpoints = [ModelRef("w", "k", transform, 100)]
    suite = [{"evaluator": name, "tasks": ["a"]} for name in ("knn", "linear", "fewshot")]
    knn, linear, fewshot = (item for item in plan(suite, checkpoints) if item.model_ref.is_pixels)
    for item in (knn, linear, fewshot):
        assert item.key.transform == item.model_ref.transform
    assert (knn.key.transform["size"], knn.key.transform["resize"]) == seen
    assert knn.key.transform | {"size": size, "resize": transform["resize"]} == transform
    assert (linear.key.transform["size"], linear.key.transform["resize"]) == (seen[0], seen[0])
    assert (fewshot.key.transform["size"], fewshot.key.transform["mode"]) == (seen[0], "square")
    assert [item.model_ref.transform["size"] for item in plan(suite, checkpoints) if not item.model_ref.is_pixels] == (
        [size] * 3
    )


def test_last_means_the_newest_checkpoint_and_the_baselines() -> None:
    suite = [{"evaluator": "finetune", "tasks": ["a"], "checkpoints": "last"}]
    assert steps(plan(suite)) == ["pixels", 0, 200]
    assert steps(plan(suite, baselines=False)) == [200]
    assert steps(plan(suite, CHECKPOINTS[:1], baselines=False)) == [0], "nothing is trained yet"
    assert steps(plan([{"evaluator": "inspect", "tasks": ["a"], "checkpoints": "last"}])) == [200]


def test_without_checkpoints_nothing_is_due() -> None:
    assert plan([{"evaluator": "knn", "tasks": ["a"]}], []) == []


def test_while_a_run_is_not_complete_no_checkpoint_is_the_last() -> None:
    suite = [{"evaluator": "finetune", "tasks": ["a"], "checkpoints": "last"}, {"evaluator": "knn", "tasks": ["a"]}]
    planned = plan_evaluations(CHECKPOINTS, recipe(suite, baselines=False), DIGESTS, is_complete=False)
    assert [(item.key.evaluator, item.model_ref.step) for item in planned] == [("knn", 100), ("knn", 200)]


NOW = 1e9
OWNER = Owner(place="elsewhere", pid=1, token="t")
CLAIM = Claim(owner=OWNER, run="r", name="n", generation=0, since=NOW, expires=NOW + 10)


def failure(retry_after: float | None) -> Failure:
    """The last one's."""
    return Failure(kind="error", run="r", name="n", reason="why", errors=1, losses=0, at=NOW, retry_after=retry_after)


ENTRIES: dict[str, tuple[EvaluationState, State]] = {
    "untouched": (EvaluationState(), "due"),
    "recorded": (EvaluationState(is_recorded=True, claims=1), "done"),
    "claimed": (EvaluationState(claims=1, claim=CLAIM, expires=NOW + 10), "running"),
    "expired": (EvaluationState(claims=1, claim=CLAIM, expires=NOW - 1), "due"),
    "failed a moment ago": (EvaluationState(claims=1, failure=failure(NOW + 5)), "waiting"),
    "failed a while ago": (EvaluationState(claims=1, failure=failure(NOW - 5)), "due"),
    "failed for good": (EvaluationState(claims=3, failure=failure(None)), "failed"),
    "failed, and claimed again": (
        EvaluationState(claims=2, claim=CLAIM, expires=NOW + 1, failure=failure(NOW - 5)),
        "running",
    ),
    "failed for good, but recorded by another": (
        EvaluationState(claims=2, is_recorded=True, failure=failure(None)),
        "done",
    ),
}


@pytest.mark.parametrize("what", ENTRIES)
def test_how_it_stands(what: str) -> None:
    (item,) = plan([{"evaluator": "knn", "tasks": ["a"]}], CHECKPOINTS[2:], baselines=False)
    entry, state = ENTRIES[what]
    view = {item.id: entry}
    assert state_of(item, view, Patterns([]), NOW) == state
    assert due_evaluations([item], view, NOW) == ([item] if state == "due" else [])
    cancelled = state if state in ("done", "running") else "cancelled"
    assert state_of(item, view, Patterns(["knn on *"]), NOW) == cancelled
    assert due_evaluations([item], view, NOW, ["knn on a of step ?00"]) == []
    assert due_evaluations([item], view, NOW, ["knn on b of step *"]) == due_evaluations([item], view, NOW)


def test_what_is_due_is_pure_and_in_order() -> None:
    planned = plan([{"evaluator": "knn", "tasks": ["a"]}, {"evaluator": "finetune", "tasks": ["a"]}])
    view = {planned[2].id: EvaluationState(is_recorded=True)}
    before = copy.deepcopy(view)
    names = [item.name for item in due_evaluations(planned, view, NOW)]
    assert names == [
        "finetune on a of step 200",
        "knn on a of step 200",
        "finetune on a of step 100",
        "finetune on a of step 0",
        "knn on a of step 0",
        "finetune on a of pixels",
        "knn on a of pixels",
    ], "the newest first, the longest of it first; one is recorded"
    assert names == [item.name for item in due_evaluations(planned, view, NOW)]
    assert view == before
    chosen = [item.name for item in due_evaluations(planned, view, NOW, priority=["* of pixels", "knn on *"])]
    assert chosen[:4] == [
        "finetune on a of pixels",
        "knn on a of pixels",
        "knn on a of step 200",
        "knn on a of step 0",
    ]
    assert sorted(chosen) == sorted(names)


def test_names_tell_seeds_and_patterns_without_one_mean_all() -> None:
    planned = plan([{"evaluator": "fewshot", "tasks": ["a"], "seeds": [0, 1]}], CHECKPOINTS[1:], baselines=False)
    names = [item.name for item in planned]
    assert names[:2] == ["fewshot on a of step 100", "fewshot on a of step 100 seed 1"]
    for pattern, count in {
        "fewshot on a of step 100": 2,
        "fewshot on a of step 100 seed 1": 1,
        "* of step *": 4,
        "fewshot": 0,
        "* seed 1": 2,
    }.items():
        assert sum(Patterns([pattern]).match(name) for name in names) == count, pattern


KEY = EvaluationKey(
    weights_digest="w",
    evaluator="knn",
    protocol_version=1,
    task="a",
    dataset_digests=("1", "2"),
    transform=TRANSFORM,
    settings={"k": [10], "temperature": 0.07, "validation": 0.1},
    seed=0,
)
CHANGES: dict[str, Any] = {
    "weights_digest": "v",
    "evaluator": "linear",
    "protocol_version": 2,
    "dataset_digests": ("2", "1"),
    "transform": TRANSFORM | {"resize": 9},
    "settings": {"k": [10], "temperature": 0.07, "validation": 0.2},
    "seed": 1,
}


def test_every_field_is_looked_at() -> None:
    assert set(CHANGES) | {"task"} == set(EvaluationKey.model_fields)


@pytest.mark.parametrize("field", CHANGES)
def test_the_id_differs_by_every_field(field: str) -> None:
    assert KEY.model_copy(update={field: CHANGES[field]}).id != KEY.id


def test_the_id_does_not_differ_by_the_tasks_name() -> None:
    assert KEY.model_copy(update={"task": "renamed"}).id == KEY.id


@pytest.mark.parametrize(
    ("entry", "changes"),
    [
        ({"settings": {"k": [5]}}, {}),
        ({"settings": {"temperature": 0.1}}, {}),
        ({"seeds": [1]}, {}),
        ({}, {"tasks": {"a": {"train": "a-train", "test": "a-test", "validation": 0.3}}}),
        ({}, {"tasks": {"a": {"train": "b-train", "test": "a-test"}}}),
        ({}, {"tasks": {"a": {"train": "a-train", "test": "b-test"}}}),
    ],
    ids=["k", "temperature", "seed", "validation", "train", "test"],
)
def test_the_plan_puts_all_of_it_into_the_key(entry: dict[str, Any], changes: dict[str, Any]) -> None:
    (before,) = plan([{"evaluator": "knn", "tasks": ["a"]}], CHECKPOINTS[2:], baselines=False)
    (after,) = plan([{"evaluator": "knn", "tasks": ["a"]} | entry], CHECKPOINTS[2:], baselines=False, **changes)
    assert before.key.id != after.key.id


def test_defaults_written_out_give_the_same_id() -> None:
    (before,) = plan([{"evaluator": "fewshot", "tasks": ["a"]}], CHECKPOINTS[2:], baselines=False)
    settings = {"shots": 10, "l2": 1024}
    (after,) = plan([{"evaluator": "fewshot", "tasks": ["a"], "settings": settings}], CHECKPOINTS[2:], baselines=False)
    assert before.key.id == after.key.id


def test_a_task_that_tests_on_its_training_dataset_is_refused() -> None:
    with pytest.raises(RecipeError, match="train and test are the same dataset 'a-train': scores would mean nothing"):
        recipe([{"evaluator": "knn", "tasks": ["a"]}], tasks={"a": {"train": "a-train", "test": "a-train"}})


def test_the_same_samples_under_two_names_are_refused() -> None:
    digests = DIGESTS | {"b-test": DIGESTS["b-train"]}
    asked = recipe([{"evaluator": "knn", "tasks": ["a", "b"]}])
    with pytest.raises(InputError, match="task b: b-train and b-test hold the same samples") as caught:
        plan_evaluations(CHECKPOINTS, asked, digests)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        ([{"evaluator": "knn", "tasks": ["c"]}], "suite names task 'c'; tasks are a, b"),
        ([{"evaluator": "kmm", "tasks": ["a"]}], "suite.0.evaluator"),
        ([{"evaluator": "knn", "tasks": []}], "suite.0.tasks"),
        ([{"evaluator": "knn", "tasks": ["a"], "seeds": []}], "suite.0.seeds"),
        ([{"evaluator": "knn", "tasks": ["a"], "settings": {"shots": 3}}], "knn has no setting 'shots'"),
        ([{"evaluator": "linear", "tasks": ["a"], "settings": {"l2": "strong"}}], "l2"),
        ([{"evaluator": "knn", "tasks": ["a"], "settings": {"k": []}}], "k"),
        ([{"evaluator": "linear", "tasks": ["a"], "settings": {"l2": []}}], "l2"),
        ([{"evaluator": "finetune", "tasks": ["a"], "settings": {"learning_rates": []}}], "learning_rates"),
        ([{"evaluator": "knn", "tasks": ["a"], "settings": {"k": [0]}}], "k"),
        ([{"evaluator": "linear", "tasks": ["a"], "settings": {"l2": [-1.0]}}], "l2"),
        ([], "suite"),
    ],
)
def test_a_suite_that_cannot_be_done_is_refused(suite: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(suite)
    assert len(caught.value.problems) == 1
    assert said in caught.value.problems[0]
    assert "\n" not in caught.value.problems[0]
    assert "validation error" not in caught.value.problems[0]
