"""Fail points: places at which a test may have this process killed. Without VITPIPE_FAIL_AT they do nothing.

``VITPIPE_FAIL_AT=shard.before-card`` kills the process with SIGKILL when it reaches that point;
``VITPIPE_FAIL_AT=shard.before-card:FILE`` does it once over all processes: the one that creates FILE dies; FILE then
holds its process id. ``stop@shard.before-card:FILE`` stops it there (SIGSTOP), for somebody to wake it later.
"""

from __future__ import annotations

import os
import signal
import threading

VARIABLE = "VITPIPE_FAIL_AT"


def fail_point(point: str) -> None:
    """Mark that *point* is reached."""
    named, _, once = os.environ.get(VARIABLE, "").partition(":")
    action, _, name = named.rpartition("@")
    if name == point and (not once or _first(once)):
        # to this thread: another one that takes a SIGSTOP of the process lets this one go on for a moment
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP if action == "stop" else signal.SIGKILL)


def _first(path: str) -> bool:
    try:
        number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    os.write(number, str(os.getpid()).encode())
    os.close(number)
    return True
