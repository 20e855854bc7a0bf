"""A proxy between us and Postgres, which breaks the wire and not the code.

It works in a thread of its own, so it may stand before blocking clients, the test's own loop and other processes
alike. Whoever connects by `proxy.url` reaches the test's database through it. Faults hold from when the call returns
until `start()`, for connections that are there and for those that come.
"""

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fix_database import DatabaseUrls
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_AT_ONCE = 65536
_RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Wire:
    """One client's connection, with its way on to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    introduction: bytes = b""
    """The first message, in which a client says its name (`application_name`), database and user."""
    deaf: bool = False
    """It swallows what comes, from both sides, for good: a wire that has lost bytes never works again."""
    seen: bytes = b""
    """The last of what the client has sent since the latest order: a message may come in pieces."""
    loss: "Loss | None" = None
    """Why it swallows what the server says."""
    unanswered: bytes = b""
    """What was found of the message for which nothing has come back yet."""
    pumps: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                end = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()
        for pump in self.pumps:
            pump.cancel()


@dataclass(eq=False)
class Loss:
    """The order to lose the answer to a message, and what came of it."""

    message: re.Pattern[bytes]
    left: int
    cut: bool
    lost: list[bytes] = field(default_factory=list)
    """What was found of the message, for each whose answer is lost: the server has given it."""


class Proxy:
    """Between one database and its clients. Close it, or use it in a `with`."""

    def __init__(self, dsn: str) -> None:
        self._server = conninfo_to_dict(dsn)
        self._loop = asyncio.new_event_loop()
        self._wires: set[_Wire] = set()
        self._listener: asyncio.Server | None = None
        self._delay = 0.0
        self._deaf_to: bytes | None = None
        self._losses: list[Loss] = []
        self.answers_lost = 0
        """Of those that `lose_answer` was told to lose, so many have been."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        # Nothing is encrypted, so that the proxy can read what passes.
        way = {"host": "127.0.0.1", "port": self.port, "sslmode": "disable", "gssencmode": "disable"}
        self.url = make_conninfo(**(self._server | way))
        """The database's address through the proxy."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return self._told(lambda: len(self._wires))

    def start(self) -> None:
        """Listen, and let everything pass as it comes. Connections that had bytes swallowed are reset."""
        self._run(self._start())

    def stop(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._run(self._stop())

    def cut(self, *, of: bytes = b"") -> None:
        """Reset the connections that are there now; new ones are served. `of`: only those whose first message has
        these bytes in it, say an `application_name`."""
        self._told(lambda: [wire.reset() for wire in self._chosen(of)])

    def deaf(self, *, to: bytes = b"") -> None:
        """Go on accepting, and swallow everything: no answer comes, and no error. `to` chooses as `of` in `cut`."""

        def fall_deaf() -> None:
            self._deaf_to = to
            for wire in self._chosen(to):
                wire.deaf = True

        self._told(fall_deaf)

    def slow(self, seconds: float) -> None:
        """Let whatever passes take this much longer, in each direction."""
        self._told(lambda: setattr(self, "_delay", seconds))

    def lose_answer(self, message: bytes | re.Pattern[bytes], *, times: int = 1, cut: bool = False) -> Loss:
        """Deliver the next message to the server that has these bytes in it, or what the pattern finds, and nothing of
        what comes back on its connection from then on. With `cut` the connection is reset as soon as the server has
        answered. What was sent before the order is not meant by it."""
        wanted = re.compile(re.escape(message)) if isinstance(message, bytes) else message
        loss = Loss(wanted, times, cut)

        def order() -> None:
            for wire in self._wires:
                wire.seen = b""
            self._losses.append(loss)

        self._told(order)
        return loss

    def _told(self, act: Callable[[], Any]) -> Any:
        async def there() -> Any:
            return act()

        return self._run(there())

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def _chosen(self, bytes_of_introduction: bytes) -> list[_Wire]:
        return [wire for wire in self._wires if bytes_of_introduction in wire.introduction]

    async def _start(self) -> None:
        self._delay, self._deaf_to = 0.0, None
        self._losses.clear()
        for wire in [wire for wire in self._wires if wire.deaf or wire.loss is not None]:
            wire.reset()
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _stop(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        serving = [pump for wire in self._wires for pump in wire.pumps]
        for wire in list(self._wires):
            wire.reset()
        if serving:
            await asyncio.wait(serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = _Wire(writer)
        self._wires.add(wire)
        try:
            # In a task of its own: the stream's own callback makes noise when its task is cancelled.
            wire.pumps.append(asyncio.create_task(self._pass(wire, reader)))
            await asyncio.wait(wire.pumps)
        finally:
            wire.reset()
            self._wires.discard(wire)

    async def _pass(self, wire: _Wire, client: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            await self._through(wire, client)

    async def _through(self, wire: _Wire, client: asyncio.StreamReader) -> None:
        wire.introduction = await client.read(_AT_ONCE)
        wire.deaf = self._deaf_to is not None and self._deaf_to in wire.introduction
        if wire.deaf:
            while await client.read(_AT_ONCE):
                pass
            return
        server, wire.server = await self._connected()
        wire.server.write(wire.introduction)
        answers = asyncio.create_task(self._answers(wire, server))
        wire.pumps.append(answers)
        try:
            await self._questions(wire, client, wire.server)
        finally:
            answers.cancel()
            await asyncio.wait([answers])

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = str(self._server.get("host") or "/tmp"), self._server.get("port") or 5432
        if host.startswith("/"):
            return await asyncio.open_unix_connection(Path(host) / f".s.PGSQL.{port}")
        return await asyncio.open_connection(host, int(port))

    async def _questions(self, wire: _Wire, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await client.read(_AT_ONCE):
            await asyncio.sleep(self._delay)
            if wire.deaf:
                continue
            wire.seen = (wire.seen + data)[-2 * _AT_ONCE :]
            for loss in self._losses:
                if loss.left and wire.loss is None and (found := loss.message.search(wire.seen)):
                    loss.left -= 1
                    wire.loss, wire.unanswered = loss, found[0]
            server.write(data)
            await server.drain()

    async def _answers(self, wire: _Wire, server: asyncio.StreamReader) -> None:
        while data := await server.read(_AT_ONCE):
            await asyncio.sleep(self._delay)
            if wire.loss is not None:
                self.answers_lost += 1
                if wire.unanswered:
                    wire.loss.lost.append(wire.unanswered)
                    wire.unanswered = b""
                if wire.loss.cut:
                    break
            elif not wire.deaf:
                wire.client.write(data)
                await wire.client.drain()
        if wire.deaf or (wire.loss is not None and not wire.loss.cut):
            return  # the client hears nothing of this either
        wire.reset()


@pytest.fixture
def proxy(database_urls: DatabaseUrls) -> Iterator[Proxy]:
    """A proxy before the test's database, for the application's login."""
    with Proxy(database_urls.app) as proxy:
        yield proxy
