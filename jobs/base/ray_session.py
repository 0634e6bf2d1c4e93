"""Connect to Ray: to the cluster that is named, or to a local one that ends with the command.

Ray and torch are imported inside functions: commands that refuse their input, or need neither, do without them.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.base.errors import RefusedError

_MIN_CPUS = 2  # of a local cluster: a machine with one core still runs two ranks, only slower


@contextmanager
def connected(address: str | None, debug: bool = False) -> Iterator[None]:
    """Inside, ray is connected to *address* (default: RAY_ADDRESS, which Ray Jobs sets), or to a local cluster.

    Raises RefusedError when the named cluster does not answer.
    """
    _prepare(debug)
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    level = logging.INFO if debug else logging.ERROR
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, log_to_driver=debug, logging_level=level)
        else:
            cpus = max(_MIN_CPUS, os.cpu_count() or 1)
            # "local": without it ray would join, or stumble over, any cluster it finds on this machine
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=debug, logging_level=level)
    except (ConnectionError, ValueError, RuntimeError) as error:
        problem = f"no Ray cluster answers at {address}" if address else "no local Ray cluster could be started"
        raise RefusedError(f"{problem} ({type(error).__name__})", "check --address, or leave it out") from error
    try:
        signal.signal(signal.SIGTERM, on_sigterm)  # ray.init installs its own handler, which exits with 15
        yield
    finally:
        ray.shutdown()


def import_torch_first() -> None:
    """Import torch; for commands that need it, before ray connects.

    In a driver of a Ray job with a working directory, the first import of torch after the connection ended the
    process ("oneMKL FATAL ERROR: Cannot load libtorch_cpu.so", seen with ray 2.60 and torch 2.13).
    """
    import torch  # noqa: F401 - a second or two that other commands do without


def require_cpus(stage: str, needed: float) -> None:
    """Raise RefusedError when the cluster has fewer CPUs than *stage* needs, instead of waiting for them for ever."""
    import ray

    available = ray.cluster_resources().get("CPU", 0)
    if needed > available:
        raise RefusedError(
            f"{stage} needs {needed:g} CPUs, the cluster has {available:g}", "lower workers, or add nodes"
        )


def cluster_cpus() -> float:
    """CPUs of the cluster that ray is connected to."""
    import ray

    return max(1.0, float(ray.cluster_resources().get("CPU", 1)))


def _prepare(debug: bool) -> None:
    """Settings that Ray and its workers read from the environment, before it is imported."""
    settings = {
        "OMP_NUM_THREADS": "1",  # each process computes on its own core; more threads than cores cost time
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # vitpipe prints its own
        "RAY_DEDUP_LOGS": "0" if debug else "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if not debug:
        for name in ("ray.data", "ray.train", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
