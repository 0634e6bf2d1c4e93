"""Real ranks for tests: processes of one gloo group on a free port of this machine, ended whatever happens."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LIMIT_SECONDS = 100.0  # a guard against hanging, not a claim


def spawn_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any, limit_seconds: float = LIMIT_SECONDS
) -> list[Any]:
    """What ``function(*arguments)`` returned on each of *world_size* ranks, in their order.

    *function* has to stand at the top of its module. What a rank raises is raised here, with its traceback, and
    ends the others.
    """
    inherited = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}  # read when torch and deepspeed are imported
    with tempfile.TemporaryDirectory(prefix="vitpipe-ranks-") as folder:
        with mock.patch.dict(os.environ, inherited):
            ranks = mp.spawn(
                _rank, (world_size, free_port(), folder, function, arguments), nprocs=world_size, join=False
            )
        deadline = time.monotonic() + limit_seconds
        try:
            while not ranks.join(timeout=1.0):
                if time.monotonic() > deadline:
                    raise AssertionError(f"{function.__name__} on {world_size} ranks took over {limit_seconds} s")
        finally:
            for process in ranks.processes:
                process.kill()
                process.join()
        return [pickle.loads((Path(folder) / f"{rank}.pickle").read_bytes()) for rank in range(world_size)]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _rank(
    rank: int, world_size: int, port: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    place = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    try:
        result = function(*arguments)
        (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(result))
    finally:
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of libraries that are still there have aborted the interpreter on its way out ("terminate called").
    os._exit(0)
