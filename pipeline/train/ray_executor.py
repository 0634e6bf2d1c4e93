"""Ray Train starts the ranks. The only module here that imports ray.

Ray only places processes: order, checkpoints and metrics are ours, in the workspace, since its own report is a barrier
and its checkpoints can be lost between an upload and the report. Restarts are counted here, not by Ray, which would
restart ranks that gave up for a reason, and which counts every death of a run of months.

Ranks of an elastic training are begun anew, in the largest number that fits, when one died, when nodes were added, and
when one of their nodes is to be drained; in the last two cases after a checkpoint.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")  # before the import: ray.train reads it there

import ray.train
from ray._private import state as ray_state
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from pipeline.base.cluster_head import ClusterHead
from pipeline.base.errors import FailedError, InterruptedRunError, VitpipeError
from pipeline.train.preemption import RELOCATING, SIGTERM, install_sigterm_handler
from pipeline.train.watchdog import Watchdog

_LOOK_SECONDS = 2.0  # between two looks at the nodes
_GROW_SECONDS = 60.0  # more room has to last that long before all ranks begin anew for it
_SETTLE_SECONDS = 5.0  # what dead ranks had reserved is free after a few seconds
_LEAVE_SECONDS = 15.0  # beyond the grace period: for the way out of the ranks
_ECHO_SECONDS = 1.0  # a second SIGTERM so soon is the first one, sent to the process and to its group
_QUIET_SECONDS = 10.0  # of waiting for room, before a message says so
_HEAD_SECONDS = 10.0  # without the cluster's head, before that is the end
_RAY_SECONDS = 50.0  # Ray ends a process a minute after its head


@dataclass(frozen=True)
class ElasticSizes:
    """How many ranks may be started (the largest first), what each reserves, and how often they may die without having
    got any further.
    """

    sizes: Sequence[int]
    resources: dict[str, float]
    max_failures: int
    grace_seconds: float


def launch(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    sizes: ElasticSizes,
    on_message: Callable[[str, str], None],
    reached: Callable[[], int] = lambda: 0,
) -> bool:
    """Run *worker(config)* on ranks of one gloo group, restarting all when one dies, until all return.

    True when they returned after a SIGTERM. *config* gets ``supervisor``, the address for a RankHeartbeat. *on_message*
    gets (attempt, message for people), where attempt is "" before there is one. Deaths are counted anew once
    *reached*, the newest step that is saved, has grown.

    Raises a worker's own typed error, without a restart; FailedError when ranks died too often; InterruptedRunError
    when ranks did not end in time after a SIGTERM, and when the head of the cluster was lost.
    """
    watchdog = Watchdog(ray.util.get_node_ip_address(), on_message)
    head = _Head(ClusterHead(str(ray.get_runtime_context().gcs_address), _HEAD_SECONDS), watchdog, sizes)
    try:
        with _sigterm(watchdog, sizes.grace_seconds), head:
            _until_done(worker, config | {"supervisor": watchdog.address}, sizes, watchdog, reached, head.settle)
        if head.lost is not None:
            raise head.lost
        return watchdog.stopping == SIGTERM
    except Exception as error:
        if head.lost is not None and error is not head.lost:
            raise head.lost from error
        raise
    finally:
        watchdog.close()


def _until_done(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    sizes: ElasticSizes,
    watchdog: Watchdog,
    reached: Callable[[], int],
    settle: Callable[[], None] = lambda: None,
) -> None:
    failures, best = 0, reached()
    while True:
        size = _fitting(sizes, watchdog) if len(sizes.sizes) > 1 else sizes.sizes[0]
        try:
            with _Nodes(sizes, size, watchdog):
                _fit(worker, config, size, sizes)
        except Exception as error:
            typed = _typed(error)
            if typed is not None:
                raise typed from error
            before, best = best, max(best, reached())
            failures = failures + 1 if best == before else 1
            if failures > sizes.max_failures:
                raise _ended(error) from error
            settle()
            continue
        if not watchdog.go_on():
            return


def _fit(worker: Callable[[dict[str, Any]], None], config: dict[str, Any], size: int, sizes: ElasticSizes) -> None:
    with tempfile.TemporaryDirectory(prefix="vitpipe-train-") as scratch:
        TorchTrainer(
            worker,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(num_workers=size, resources_per_worker=sizes.resources),
            torch_config=TorchConfig(backend="gloo"),
            run_config=ray.train.RunConfig(
                name="vitpipe",
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=0),
                callbacks=[_InstallSigtermHandler()],
            ),
        ).fit()


class _InstallSigtermHandler(WorkerGroupCallback):  # type: ignore[misc]
    """Ray trains in a thread of the worker, where no signal can be caught; this reaches the main one."""

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        worker_group.execute(install_sigterm_handler)


@contextmanager
def _sigterm(watchdog: Watchdog, grace_seconds: float) -> Iterator[None]:
    """Inside, the first SIGTERM asks the ranks to save and stop; a later one, or too long a wait, raises here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    impatient = threading.Timer(grace_seconds + _LEAVE_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    impatient.daemon = True

    first: list[float] = []

    def on_sigterm(_number: int, _frame: object) -> None:
        if first:
            if time.monotonic() - first[0] < _ECHO_SECONDS:
                return
            first.append(time.monotonic())
            raise KeyboardInterrupt  # nothing else gets out of Ray's waiting
        first.append(time.monotonic())
        # In a thread, since the handler may have interrupted one that has the watchdog's lock.
        threading.Thread(target=watchdog.stop, args=(SIGTERM,), daemon=True).start()
        impatient.start()

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    except KeyboardInterrupt:
        if len(first) < 2:
            raise
        raise InterruptedRunError("stopped by SIGTERM", "the same command goes on where it stopped") from None
    finally:
        impatient.cancel()
        signal.signal(signal.SIGTERM, before)


class _Head:
    """A thread that watches the head of the cluster. When it is lost, the ranks are asked to save and stop, and the
    main thread is ended once they have: without the head, Ray brings nothing to its end.
    """

    def __init__(self, head: ClusterHead, watchdog: Watchdog, sizes: ElasticSizes) -> None:
        self._head, self._watchdog = head, watchdog
        self._grace_seconds = min(sizes.grace_seconds, _RAY_SECONDS - _HEAD_SECONDS)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head", daemon=True)
        self.lost: InterruptedRunError | None = None

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def settle(self) -> None:
        """Wait for a head that does not answer: without it nothing can be started. Raises InterruptedRunError."""
        while not self._head.answers():
            if self.lost is not None:
                raise self.lost
            self._done.wait(_ECHO_SECONDS)

    def _watch(self) -> None:
        while not self._done.wait(_LOOK_SECONDS):
            try:
                message = self._head.check()
            except InterruptedRunError as error:
                self.lost = error
                self._leave(error)
                return
            if message:
                self._watchdog.message(message)

    def _leave(self, error: InterruptedRunError) -> None:
        self._watchdog.message(f"{error.message}; the ranks are asked to save and stop")
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + self._grace_seconds
        self._done.wait(2 * _ECHO_SECONDS)  # a signal that follows at once is taken for the same
        while self._watchdog.num_ranks and time.monotonic() < until and not self._done.is_set():
            self._done.wait(_ECHO_SECONDS)
        if not self._done.is_set():
            os.kill(os.getpid(), signal.SIGTERM)


class _Nodes:
    """A thread that watches the nodes while *size* ranks train: for room to grow, and for nodes that will go."""

    def __init__(self, sizes: ElasticSizes, size: int, watchdog: Watchdog) -> None:
        self._sizes, self._size, self._watchdog = sizes, size, watchdog
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="nodes", daemon=True)
        self._draining = set(_draining())

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(_LOOK_SECONDS)  # a head that is gone gives no answer for long

    def _watch(self) -> None:
        roomy_since = None
        while not self._done.wait(_LOOK_SECONDS):
            if set(_draining()) - self._draining:
                self._watchdog.stop(RELOCATING)
                return
            larger = [size for size in self._sizes.sizes if size > self._size]
            if not larger or self._size + _room(self._sizes.resources) < min(larger):
                roomy_since = None
                continue
            roomy_since = roomy_since or time.monotonic()
            if time.monotonic() - roomy_since > _GROW_SECONDS:
                self._watchdog.stop(RELOCATING)
                return


def _fitting(sizes: ElasticSizes, watchdog: Watchdog) -> int:
    """The largest size that fits on what is free now; waits for the smallest. Raises InterruptedRunError."""
    best, since, is_reported = 0, time.monotonic(), False
    while True:
        room = _room(sizes.resources)
        best = max(best, next((size for size in sizes.sizes if size <= room), 0))
        if best == sizes.sizes[0] or (best and time.monotonic() - since > _SETTLE_SECONDS):
            return best
        if watchdog.stopping == SIGTERM:
            raise InterruptedRunError("stopped by SIGTERM", "the same command goes on where it stopped")
        if not is_reported and time.monotonic() - since > _QUIET_SECONDS:
            is_reported = True
            watchdog.message(
                f"waits for room: {room} ranks of {sizes.resources} fit on what is free, {sizes.sizes[-1]} are needed"
            )
        time.sleep(_SETTLE_SECONDS / 10)  # Ray has no event for resources that become free


def _room(resources: dict[str, float]) -> int:
    """How many ranks fit on what is free on nodes that stay."""
    free = ray_state.available_resources_per_node()
    gone = set(_draining())
    return sum(
        min(int(node.get(name, 0.0) / need + 1e-9) for name, need in resources.items() if need)
        for node_id, node in free.items()
        if node_id not in gone
    )


def _draining() -> dict[str, int]:
    """Ids of the nodes that Ray was told to drain."""
    nodes: dict[str, int] = ray_state.state.get_draining_nodes()
    return nodes


def _typed(error: BaseException) -> VitpipeError | None:
    """The first typed error inside what Ray raised: a rank gave up."""
    failures = getattr(error, "worker_failures", {})
    for inner in (*failures.values(), error, error.__cause__):
        for cause in (inner, getattr(inner, "_base_exc", None), getattr(inner, "cause", None)):
            if isinstance(cause, VitpipeError):
                return cause
    return None


def _ended(error: BaseException) -> FailedError:
    """Ranks died too often; *error* is what Ray raised at the last time."""
    failures = getattr(error, "worker_failures", {})
    first = next(iter(failures.values()), error)
    return FailedError(
        f"training failed: {type(first).__name__}: {(str(first).strip() or 'no message').splitlines()[-1][:300]}",
        "give the same command again to resume from the last checkpoint; --debug shows the traceback",
    )
