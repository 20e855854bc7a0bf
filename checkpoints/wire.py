"""A connection's statements, prepared once and sent by libpq itself: one message out, one wait.

psycopg's cursors are made for any statement at any time; for a few that are sent all day, what they do around each
takes the client longer than Postgres takes for a small one.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, LiteralString

from psycopg.abc import Buffer
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.rows import DictRow

from holdfast.checkpoints.arrays import Encoded
from holdfast.checkpoints.giving_up import Connection

_PLACEHOLDER = re.compile(r"%\((\w+)\)s|%%")
_REFUSED = (ExecStatus.FATAL_ERROR, ExecStatus.NONFATAL_ERROR, ExecStatus.BAD_RESPONSE)


class Wire:
    """Sends over one connection, for one task at a time; nothing else may use the connection meanwhile."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self._prepared: dict[tuple[str, tuple[int, ...]], bytes] = {}
        self._reading = Transformer(conn)

    async def run(self, query: LiteralString, parameters: Mapping[str, Any]) -> list[DictRow]:
        """The rows of one statement, committed.

        Raises psycopg's errors. Whatever else ends the wait closes the connection: it is in the middle of something.
        """
        text, names = _numbered(query)
        values, types, formats = self._parameters([parameters[name] for name in names])
        name = self._prepared.get((query, types))
        if name is None:
            name = b"holdfast_%d" % len(self._prepared)
            await self._sent(lambda: self.conn.pgconn.send_prepare(name, text, types))
            self._prepared[query, types] = name
        return self._rows(
            await self._sent(lambda: self.conn.pgconn.send_query_prepared(name, values, formats, Format.BINARY))
        )

    def _parameters(
        self, given: Sequence[Any]
    ) -> tuple[Sequence[Buffer | None], tuple[int, ...], Sequence[Format] | None]:
        """What is sent, of which types, and in which formats."""
        if {*map(type, given)} == {Encoded}:
            return given, (), [Format.BINARY] * len(given)
        sending = Transformer(self.conn)
        values = sending.dump_sequence(given, [PyFormat.AUTO] * len(given))
        return values, sending.types or (), sending.formats

    async def _sent(self, send: Callable[[], None]) -> PGresult:
        try:
            send()
            result = await self._answer()
        except BaseException:
            self.conn.pgconn.finish()
            raise
        if result.status in _REFUSED:
            raise error_from_result(result, encoding="utf-8")
        return result

    async def _answer(self) -> PGresult:
        pgconn = self.conn.pgconn
        while pgconn.flush():
            await self._ready(writing=True)
            pgconn.consume_input()  # or server and client could each wait for the other to read
        results: list[PGresult] = []
        while True:
            while pgconn.is_busy():
                await self._ready()
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                return results[-1]
            results.append(result)

    async def _ready(self, *, writing: bool = False) -> None:
        loop, wire = asyncio.get_running_loop(), self.conn.pgconn.socket
        ready = loop.create_future()
        loop.add_reader(wire, _wake, ready)
        if writing:
            loop.add_writer(wire, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_reader(wire)
            if writing:
                loop.remove_writer(wire)

    def _rows(self, result: PGresult) -> list[DictRow]:
        if not result.ntuples:
            return []
        names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
        self._reading.set_pgresult(result)
        return [dict(zip(names, row, strict=True)) for row in self._reading.load_rows(0, result.ntuples, tuple)]


@lru_cache
def _numbered(query: str) -> tuple[bytes, tuple[str, ...]]:
    """The query as Postgres reads it, with numbers for names, and the names in the order of their numbers."""
    names = tuple(dict.fromkeys(name for name in _PLACEHOLDER.findall(query) if name))
    text = _PLACEHOLDER.sub(lambda found: f"${names.index(found[1]) + 1}" if found[1] else "%", query)
    return text.encode(), names


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
