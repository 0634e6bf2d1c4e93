"""What is started next: in order, what is shared first and once, and nothing is forgotten."""

from __future__ import annotations

import random
import time

from pipeline.base.config import build
from pipeline.evaluate.model_ref import ModelRef
from pipeline.evaluate.plan import PlannedEvaluation, due_evaluations, plan_evaluations
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.work_queue import WorkQueue
from pipeline.evaluate.worker import FeatureJob, feature_jobs

TRANSFORM = {"size": 8, "resize": 8, "mode": "square"}
SETTINGS = {"linear": {"transform": "model"}}  # so that it wants the features that k-NN wants
DIGESTS = {"train": "1", "test": "2"}


def plan(steps: list[int], evaluators: tuple[str, ...] = ("knn", "linear", "finetune")) -> list[PlannedEvaluation]:
    """What is due of these steps, in its order."""
    tree = {
        "tasks": {"t": {"train": "train", "test": "test"}},
        "suite": [{"evaluator": name, "tasks": ["t"], "settings": SETTINGS.get(name, {})} for name in evaluators],
        "baselines": False,
    }
    subjects = [ModelRef(f"w{step}", f"k{step}", TRANSFORM, step) for step in steps]
    return due_evaluations(plan_evaluations(subjects, build(EvaluateRecipe, tree), DIGESTS), {}, 0.0)


def whole(_: FeatureJob) -> list[int]:
    """Nothing is there, and it is one part."""
    return [0]


def drain(queue: WorkQueue) -> list[PlannedEvaluation | FeatureJob]:
    """All that can be started now, when nothing ends meanwhile."""
    found = []
    while (task := queue.next()) is not None:
        found.append(task)
    return found


def names(tasks: list[PlannedEvaluation | FeatureJob]) -> list[str]:
    return [
        f"features of {task.model_ref.name} on {task.dataset}" if isinstance(task, FeatureJob) else task.name
        for task in tasks
    ]


def test_features_come_first_and_once_and_do_not_hold_up_the_rest() -> None:
    queue = WorkQueue(lambda _: False, whole, max_tries=2)
    queue.fill(plan([100, 200]), [])
    tasks = drain(queue)
    assert names(tasks) == [
        "finetune on t of step 200",
        "features of step 200 on train",
        "features of step 200 on test",
        "finetune on t of step 100",
        "features of step 100 on train",
        "features of step 100 on test",
    ]
    train, test = tasks[4], tasks[5]
    assert isinstance(train, FeatureJob)
    assert isinstance(test, FeatureJob)
    queue.job_done(train)
    assert queue.next() is None
    queue.job_done(test)
    assert names(drain(queue)) == ["knn on t of step 100", "linear on t of step 100"]
    assert len(queue) == 2


def test_what_is_there_is_not_made() -> None:
    asked: list[FeatureJob] = []
    queue = WorkQueue(lambda one: asked.append(one) is None, whole, max_tries=2)
    queue.fill(plan([100], ("knn", "linear")), [])
    assert names(drain(queue)) == ["knn on t of step 100", "linear on t of step 100"]
    assert len(asked) == 2, "the store is asked once for each"


def test_features_that_cannot_be_made_are_given_up() -> None:
    queue = WorkQueue(lambda _: False, whole, max_tries=2)
    queue.fill(plan([100], ("knn",)), [])
    train, test = drain(queue)
    assert isinstance(train, FeatureJob)
    assert isinstance(test, FeatureJob)
    queue.job_done(test)
    queue.job_failed(train)
    assert drain(queue) == [train]
    queue.job_failed(train)
    assert names(drain(queue)) == ["knn on t of step 100"], "it will tell by itself what is wrong"


def test_parts_are_shared_out_and_the_whole_comes_after_the_last() -> None:
    queue = WorkQueue(lambda one: one.dataset == "test", lambda _: [3, 5, 6], max_tries=2)
    queue.fill(plan([100], ("knn",)), [])
    tasks = drain(queue)
    assert [task.part for task in tasks if isinstance(task, FeatureJob)] == [3, 5, 6]
    for task, ended in zip(tasks, (queue.job_done, queue.job_failed, queue.job_done), strict=True):
        assert queue.next() is None
        assert isinstance(task, FeatureJob)
        ended(task)
    (last,) = drain(queue)
    assert isinstance(last, FeatureJob)
    assert last.part is None, "it makes what is missing, and the card"
    queue.job_done(last)
    assert names(drain(queue)) == ["knn on t of step 100"]


def test_a_new_plan_keeps_the_whole_whose_parts_have_ended() -> None:
    planned = plan([100], ("knn",))
    queue = WorkQueue(lambda one: one.dataset == "test", lambda _: [0, 1], max_tries=2)
    queue.fill(planned, [])
    parts = drain(queue)
    queue.fill(planned, [])
    for part in parts:
        assert isinstance(part, FeatureJob)
        queue.job_done(part)
    queue.fill(planned, [])
    (last,) = drain(queue)
    assert isinstance(last, FeatureJob)
    assert last.part is None
    queue.job_done(last)
    assert names(drain(queue)) == ["knn on t of step 100"]


def test_evaluations_of_one_network_want_the_same_and_so_one_pass() -> None:
    wanted = feature_jobs(plan([100, 200], ("knn", "linear", "finetune")))
    assert len(wanted) == 4, "fine-tuning wants no features"
    assert len({one.id for several in wanted.values() for one in several}) == 4, "two networks, two datasets"


def test_what_failed_comes_at_its_time() -> None:
    first, second = plan([100], ("finetune", "classify"))
    queue = WorkQueue(lambda _: True, whole, max_tries=2)
    queue.fill([], [(time.time() + 1000, first), (time.time() - 1, second)])
    assert drain(queue) == [second]
    queue.add(second, 0.0)
    assert drain(queue) == [second]
    assert len(queue) == 1


def test_a_new_plan_does_not_make_twice_what_is_being_made() -> None:
    queue = WorkQueue(lambda _: False, whole, max_tries=2)
    queue.fill(plan([100], ("knn",)), [])
    being_made = drain(queue)
    queue.fill(plan([100], ("knn",)), [])
    assert drain(queue) == []
    for one in being_made:
        assert isinstance(one, FeatureJob)
        queue.job_done(one)
    assert names(drain(queue)) == ["knn on t of step 100"]


def test_every_evaluation_is_handed_out_once_whatever_ends_when() -> None:
    planned = plan(list(range(100, 1100, 100)))
    for seed in range(30):
        rng = random.Random(seed)
        queue = WorkQueue(
            lambda _, rng=rng: rng.random() < 0.3, lambda _, rng=rng: list(range(rng.randrange(4))), max_tries=2
        )
        queue.fill(planned, [])
        out: list[FeatureJob] = []
        done: list[str] = []
        for _ in range(10_000):  # guards against what is parked for ever
            if not len(queue) and not out:
                break
            if rng.random() < 0.05:  # a look, a cancellation, or news of others
                queue.fill([item for item in planned if item.name not in done], [])
            task = queue.next() if rng.random() < 0.6 else None
            if isinstance(task, FeatureJob):
                assert task not in out
                out.append(task)
            elif task is not None:
                done.append(task.name)
            elif out:
                ended = out.pop(rng.randrange(len(out)))
                (queue.job_done if rng.random() < 0.7 else queue.job_failed)(ended)
        assert sorted(done) == sorted(item.name for item in planned), seed
