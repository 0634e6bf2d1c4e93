"""A static HTTP server that costs as little as can be: what img2dataset downloads from.

``python -m tests.bench.loopback FOLDER`` prints its port and, when its input ends, what it saw as JSON: first request
and last answer on the clock that all processes share, the number of requests, and the CPU seconds that it took.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_THREADS = 8


@dataclass
class Served:
    """What the server saw; filled in when it has ended."""

    port: int
    facts: dict[str, float] = field(default_factory=dict)


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """The files below *folder* at http://127.0.0.1:PORT/."""
    command = [sys.executable, "-m", "tests.bench.loopback", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        served = Served(int(process.stdout.readline()))
        try:
            yield served
        finally:
            process.stdin.close()
            served.facts = json.loads(process.stdout.readline())


class _Seen:
    def __init__(self) -> None:
        self.first: float | None = None
        self.last = 0.0
        self.requests = 0


def _serve(listener: socket.socket, folder: str, seen: _Seen) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            request = connection.recv(4096)
            seen.first = seen.first or time.monotonic()
            name = request.split(b" ", 2)[1].decode()
            with open(folder + name, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                head = f"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {size}\r\n\r\n"
                connection.sendall(head.encode(), socket.MSG_MORE)
                sent = 0
                while sent < size:
                    sent += os.sendfile(connection.fileno(), file.fileno(), sent, size - sent)
            seen.requests += 1
            seen.last = time.monotonic()


def main() -> None:
    """Serve the folder that is named until the input ends."""
    seen = _Seen()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        arguments: tuple[Any, ...] = (listener, sys.argv[1], seen)
        for _ in range(_THREADS):
            threading.Thread(target=_serve, args=arguments, daemon=True).start()
        print(listener.getsockname()[1], flush=True)
        sys.stdin.read()
    cpu_seconds = sum(os.times()[:2])
    facts = {"first": seen.first, "last": seen.last, "requests": seen.requests, "cpu_seconds": cpu_seconds}
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
