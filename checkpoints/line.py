"""A connection that is kept: all runs of a process send through it, one statement at a time.

Everything sent on a line can be sent twice, so a lost connection is healed by making another and sending again. The
line works for a set of tenants, as a session setting; row-level security sees no others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Set
from typing import Any, LiteralString

import psycopg
from psycopg.rows import DictRow

from holdfast.checkpoints.giving_up import Connection as Connection
from holdfast.checkpoints.giving_up import hang_up, hanging_up_after
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.wire import Wire

_SQL = load_queries(__name__, "line.sql")
_MOST_TENANTS = 128
"""So many are kept in the session's setting; beyond that, it is set anew to those of the statement alone."""
_LONGEST_PAUSE_SECONDS = 1.0
_LAST_ANSWER_SECONDS = 5.0


class Line:
    """One connection, made when it is first needed. `run` is for one task at a time."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        patience_seconds: float,
        answer_seconds: float | None = None,
    ) -> None:
        """`answer_seconds`: a connection that has not answered after so long is deaf, and another one is made. As long
        as the patience when left out."""
        self._connect = connect
        self._seconds = patience_seconds
        self._answer_seconds = patience_seconds if answer_seconds is None else answer_seconds
        self._heals = True
        self._wire: Wire | None = None
        self._tenants: frozenset[str] = frozenset()

    @property
    def lost(self) -> bool:
        """Whether there is no connection now: the last statement failed for want of one."""
        return self._wire is None or self._wire.conn.closed

    async def run(self, query: LiteralString, parameters: Mapping[str, Any], *, tenants: Set[str]) -> list[DictRow]:
        """The rows of one statement, committed. It may have run more than once.

        Raises psycopg's errors: the server's refusals at once, a lost connection only when none could be had again
        within the line's patience.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._seconds
        pause = 0.0
        while True:
            try:
                return await self._try(query, parameters, tenants, max(0.0, deadline - loop.time()))
            except (psycopg.OperationalError, psycopg.InterfaceError):
                if not self.lost or loop.time() + pause >= deadline or not self._heals:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2 or 0.02, _LONGEST_PAUSE_SECONDS)

    def be_impatient(self) -> None:
        """From now on, a lost connection is not healed any more, and a deaf one is soon found out."""
        self._heals = False
        if self._wire is not None:
            asyncio.get_running_loop().call_later(_LAST_ANSWER_SECONDS, hang_up, self._wire.conn)

    async def close(self) -> None:
        """Give the connection back. The line can be used again."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.conn.close()

    async def _try(
        self, query: LiteralString, parameters: Mapping[str, Any], tenants: Set[str], seconds: float
    ) -> list[DictRow]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        wire = await self._connected(seconds)
        with hanging_up_after(wire.conn, min(self._answer_seconds, deadline - loop.time())):
            await self._work_for(wire, tenants)
            return await wire.run(query, parameters)

    async def _connected(self, seconds: float) -> Wire:
        if self._wire is None or self._wire.conn.closed:
            self._wire = None
            self._tenants = frozenset()
            try:
                async with asyncio.timeout(seconds):
                    conn = await self._connect()
            except TimeoutError as error:
                raise psycopg.OperationalError(f"no connection within {seconds:.1f} s") from error
            self._wire = Wire(conn)
        return self._wire

    async def _work_for(self, wire: Wire, tenants: Set[str]) -> None:
        if tenants <= self._tenants:
            return
        wanted = self._tenants | tenants
        if len(wanted) > _MOST_TENANTS:
            wanted = frozenset(tenants)
        await wire.run(_SQL["work_for_tenants_from_now_on"], {"tenants": ",".join(sorted(wanted))})
        self._tenants = frozenset(wanted)
