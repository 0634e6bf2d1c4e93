"""A proxy in front of an S3 server that breaks answers, seeded: what a network and a busy store do to a client.

    with FaultyProxy(server.endpoint, seed) as proxy:
        proxy.inject("cut", times=3, where=is_get)
        ...                       # a client whose endpoint is proxy.endpoint
        assert proxy.pending == 0

The client signs for the proxy's address, and the Host header is passed on as it came: so the signature holds.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

Kind = Literal[
    "503",  # SlowDown, the server is not asked
    "403",  # AccessDenied, with the access key in its message
    "cut",  # the body ends early
    "reset",  # and with a RST
    "trickle",  # a byte a second
    "stall",  # a part of the body, then nothing
    "flip",  # one bit of the answer's body
    "flip-sent",  # one bit of the request's body
    "lose",  # the server does it, and nobody hears of it
    "200-error",  # 200 with an error for a body, the server is not asked
    "call",  # nothing but `call`, before the server is asked
]


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        """The path without the bucket."""
        return urlsplit(self.target).path.lstrip("/").partition("/")[2]


Where = Callable[[Asked], bool]


def is_get(asked: Asked) -> bool:
    """A GET of an object."""
    return asked.method == "GET" and bool(asked.key)


def is_complete(asked: Asked) -> bool:
    """CompleteMultipartUpload."""
    return asked.method == "POST" and "uploadId=" in asked.target


def is_put(asked: Asked) -> bool:
    """A PUT of an object or of a part of one."""
    return asked.method == "PUT" and bool(asked.key)


@dataclass
class _Fault:
    kind: Kind
    times: int
    where: Where
    call: Callable[[], object] = field(default=lambda: None)


class FaultyProxy:
    """Runs in a thread of its own from ``__enter__`` to ``__exit__``."""

    def __init__(self, upstream: str, seed: int) -> None:
        parts = urlsplit(upstream)
        self._upstream = (str(parts.hostname), int(parts.port or 80))
        self._draw = random.Random(seed)
        self._faults: list[_Fault] = []
        self._guard = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="faulty-proxy")
        self._ready = threading.Event()
        self.endpoint = ""
        self.seen: list[Asked] = []

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def inject(self, kind: Kind, times: int, where: Where, call: Callable[[], object] | None = None) -> None:
        """Let the next *times* requests for which *where* holds meet this fault."""
        with self._guard:
            self._faults.append(_Fault(kind, times, where, call or (lambda: None)))

    @property
    def pending(self) -> int:
        """How many faults have not been met yet."""
        with self._guard:
            return sum(fault.times for fault in self._faults)

    def count(self, where: Where) -> int:
        """How many requests for which *where* holds have come."""
        with self._guard:
            return sum(1 for asked in self.seen if where(asked))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, limit=1 << 20)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, then the connection is closed."""
        try:
            asked = await _read_request(reader, writer)
            fault = self._met(asked)
            await self._answer(asked, fault, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _met(self, asked: Asked) -> _Fault:
        with self._guard:
            self.seen.append(asked)
            for fault in self._faults:
                if fault.times > 0 and fault.where(asked):
                    fault.times -= 1
                    return fault
        return _Fault("call", 0, lambda _: True)

    async def _answer(
        self, asked: Asked, fault: _Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await asyncio.get_running_loop().run_in_executor(None, fault.call)
        if fault.kind in ("503", "403", "200-error"):
            writer.write(_error(fault.kind, asked))
            await writer.drain()
            return
        body = self._flipped(asked.body) if fault.kind == "flip-sent" else asked.body
        head, answer = await self._forward(asked, body)
        if fault.kind == "lose":
            _reset(writer)
            return
        if asked.method == "HEAD" or not answer or fault.kind in ("call", "flip-sent"):
            writer.write(head + answer)
            await writer.drain()
            return
        await self._break(fault.kind, head, answer, reader, writer)

    async def _break(
        self, kind: Kind, head: bytes, answer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send what this fault leaves of the answer."""
        if kind == "flip":
            writer.write(head + self._flipped(answer))
            await writer.drain()
            return
        half = self._draw.randrange(len(answer))
        writer.write(head + (b"" if kind == "trickle" else answer[:half]))
        await writer.drain()
        if kind == "reset":
            _reset(writer)
        elif kind == "stall":
            await reader.read()  # until the client goes away
        elif kind == "trickle":
            for offset in range(len(answer)):
                writer.write(answer[offset : offset + 1])
                await writer.drain()
                await asyncio.sleep(0.1 if len(answer) > 1000 else 1.0)

    def _flipped(self, data: bytes) -> bytes:
        place = self._draw.randrange(len(data) * 8)
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        return bytes(changed)

    async def _forward(self, asked: Asked, body: bytes) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection(*self._upstream, limit=1 << 20)
        lines = [f"{asked.method} {asked.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in asked.headers.items() if name not in ("expect", "connection")]
        writer.write("\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1") + body)
        await writer.drain()
        answer = await reader.read()
        writer.close()
        head, _, rest = answer.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n", rest


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    if "expect" in headers:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, target, headers, body)


def _error(kind: str, asked: Asked) -> bytes:
    code, status = {
        "503": ("SlowDown", "503 Slow Down"),
        "403": ("AccessDenied", "403 Forbidden"),
        "200-error": ("InternalError", "200 OK"),
    }[kind]
    message = f"Not now. {asked.headers.get('authorization', '')}"
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    body = b"" if asked.method == "HEAD" else text.encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/xml\r\ncontent-length: {len(text)}\r\nconnection: close"
    return f"{head}\r\n\r\n".encode() + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST instead of a FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
