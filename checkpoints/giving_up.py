"""Giving up in time. Nothing here waits longer than the store's own terms, nor than the patience of whoever waits
(`contracts.patience`): a server that has gone deaf must not hold a run past its lease or its deadline.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow

from holdfast.checkpoints.sealed_documents import ClearDocuments, Documents
from holdfast.contracts.errors import StoreUnavailable
from holdfast.contracts.patience import Patience, patience_here


class Connection(AsyncConnection[DictRow]):
    """A connection, which knows how what it carries is stored."""

    documents: Documents = ClearDocuments()


T = TypeVar("T")

_LOOK_SECONDS = 0.1
"""How soon it is seen that someone's patience is at its end. It may have grown meanwhile, or shrunk."""
NO_TIME_LEFT = "there is none left, by the run's lease or deadline"


@contextmanager
def hanging_up_after(conn: Connection, seconds: float) -> Iterator[None]:
    """Shut the connection's socket when the block takes longer than this, or than whoever waits has patience for.

    Cancelling would not do: psycopg then asks the server to cancel and waits for its answer, and a deaf one gives
    none.
    """
    watch = _Watch(conn, seconds)
    try:
        yield
    except psycopg.Error as error:
        if watch.hung_up:
            raise psycopg.OperationalError("it did not answer in time, so the connection was shut") from error
        raise
    finally:
        watch.over()


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Raises `StoreUnavailable` when the block takes longer than whoever waits has patience for."""
    patience, loop = patience_here(), asyncio.get_running_loop()
    if patience is None:
        yield
        return

    timer = asyncio.timeout(patience())
    looks: list[asyncio.TimerHandle] = []

    def look() -> None:
        if not timer.expired():
            timer.reschedule(loop.time() + patience())
            looks[:] = [loop.call_later(_LOOK_SECONDS, look)]

    try:
        async with timer:
            look()
            yield
    except TimeoutError as error:
        if not timer.expired():
            raise
        raise StoreUnavailable(f"Postgres was not done in time: {NO_TIME_LEFT}") from error
    finally:
        for each in looks:
            each.cancel()


@contextmanager
def cancellation_kept() -> Iterator[None]:
    """Raises the `CancelledError` that the block has swallowed, once it is over.

    Before Python 3.12 `asyncio.wait_for`, by which psycopg and its pool wait, forgets a cancellation that comes at the
    same moment as what it waits for. Whoever cancelled would wait for the task for ever.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    except Exception as error:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task and task.cancelling() > before:
        raise asyncio.CancelledError


class Waiting:
    """Those who wait for work that is done for many at once. Each gives up by itself; the work goes on."""

    def __init__(self) -> None:
        self._waiters: dict[asyncio.Future[Any], tuple[Patience, Callable[[], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def answer(self, future: "asyncio.Future[T]", give_up: Callable[[], None]) -> T:
        """What `future` comes to. `give_up` is called when the patience of whoever waits here is at its end: it is to
        end the future with an error."""
        patience = patience_here()
        if patience is None:
            return await future
        if patience() <= 0:
            give_up()
        self._waiters[future] = (patience, give_up)
        if self._timer is None:
            self._look_later()
        try:
            return await future
        finally:
            del self._waiters[future]

    def _look(self) -> None:
        for patience, give_up in list(self._waiters.values()):
            if patience() <= 0:
                give_up()
        self._timer = None
        if self._waiters:
            self._look_later()

    def _look_later(self) -> None:
        # In an empty context: it looks for all, and must not carry the scope or the span of the first.
        self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look, context=Context())


def hang_up(conn: Connection) -> None:
    """End every wait on the connection, at once and with an error."""
    if not conn.closed:
        with socket.socket(fileno=socket.dup(conn.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)


class _Watch:
    """Over one connection, while someone waits for it."""

    def __init__(self, conn: Connection, seconds: float) -> None:
        self.hung_up = False
        self._conn = conn
        self._patience = patience_here()
        self._loop = asyncio.get_running_loop()
        self._ends_at = self._loop.time() + seconds
        self._timer = self._again(self._left())

    def over(self) -> None:
        self._timer.cancel()

    def _left(self) -> float:
        left = self._ends_at - self._loop.time()
        return left if self._patience is None else min(left, self._patience())

    def _again(self, left: float) -> asyncio.TimerHandle:
        return self._loop.call_later(left if self._patience is None else min(left, _LOOK_SECONDS), self._look)

    def _look(self) -> None:
        if (left := self._left()) > 0:
            self._timer = self._again(left)
        else:
            self.hung_up = True
            hang_up(self._conn)
