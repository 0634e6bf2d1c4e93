"""A child that sends back what it gets, but for a few words that it obeys. For tests of ``ChildProcess``."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import threading
import time

from pipeline.base.child_process import ChildChannel


def main() -> None:
    """Serve until the input ends."""
    channel, arguments = ChildChannel.open(sys.argv)
    if arguments[:1] == ["raw"]:
        while (data := channel.receive_raw(int(arguments[1]))) is not None:
            channel.send(data)
        return
    while (body := channel.receive()) is not None:
        obey(channel, body.decode(errors="replace"), arguments)
        channel.send(b"echo ", body)


def obey(channel: ChildChannel, word: str, arguments: list[str]) -> None:
    """Do what *word* names, if it names something."""
    if word == "describe":
        files = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        links = [os.readlink(file) for file in files if os.path.lexists(file)]  # one was of listdir itself
        channel.send(json.dumps({"arguments": arguments, "links": links, "env": dict(os.environ)}).encode())
    elif word == "print":
        print("printed", flush=True)
        channel.send(sys.stdin.buffer.read(1) + b"nothing to read")
    elif word == "fail":
        print("first line\nlast line", file=sys.stderr, flush=True)
        sys.exit(3)
    elif word == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif word == "sleep":
        time.sleep(3600)
    elif word == "spin":
        while True:
            pass
    elif word == "pieces":
        for value in struct.pack("<Q", 11) + b"sent slowly":
            os.write(channel._sink, bytes([value]))
            time.sleep(0.005)
    elif word == "threads":
        threads = [threading.Thread(target=lambda: [channel.send(b"x" * 50_000) for _ in range(20)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
