"""Who stands in a migration's way, and how it waits without standing in anyone's way itself.

What waits for a table's lock holds up everyone who comes after it. So a migration asks for its locks briefly, gives
up, lets those who queued up behind it have their turn, and asks again. A second connection sees whom it waits for.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from threading import Event, Thread
from typing import Any

import psycopg

from holdfast.checkpoints.queries import load_queries
from holdfast.contracts.errors import StoreUnavailable

_SQL = load_queries(__name__, "obstacles.sql")
_LOCK_SECONDS = 0.25
"""For a lock, before everyone else has a turn. Less than Postgres' `deadlock_timeout` of a second: where two wait for
each other, it is never the application's transaction that is ended."""
_LOCK_SECONDS_BEHIND_AUTOVACUUM = 1.5
"""More than `deadlock_timeout`, after which Postgres ends an autovacuum that is in somebody's way."""
_PAUSE_SECONDS = 1.0
_LOOK_SECONDS = 0.05

Connection = psycopg.Connection[dict[str, Any]]
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Persistence:
    """Asks for locks again and again, and says meanwhile whom it waits for."""

    tell: Callable[[str], None]
    """Called with one line when it waits, and again when it waits for someone else."""
    connect: Callable[[], Connection]
    """Makes the connection that looks; used only where there is something to wait for."""

    def until_done(self, conn: Connection, what: str, act: Callable[[], None], *, seconds: float) -> None:
        """Do `act` in a transaction whose waits for locks are brief, again and again until it gets them.

        `what` is the subject of what is told. `seconds` are counted with the pauses, and roughly: one try may wait for
        several locks. Raises `StoreUnavailable` when they are over; nothing was done then.
        """
        try:
            return _briefly(conn, act, _LOCK_SECONDS)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            refusal = error
        told: Rows = []
        found: Rows = []
        with self.connect() as looking:
            for _ in range(max(1, round(seconds / (_PAUSE_SECONDS + _LOCK_SECONDS)))):
                time.sleep(_PAUSE_SECONDS)
                brief = _LOCK_SECONDS_BEHIND_AUTOVACUUM if _is_autovacuum(found) else _LOCK_SECONDS
                try:
                    with _seeing_whom(conn, looking) as seen:
                        return _briefly(conn, act, brief)
                except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                    refusal = error
                found = seen[-1] if seen else found
                if found and _pids(found) != _pids(told):
                    told = found
                    self.tell(f"{what} waits for {_named(found)}")
        raise StoreUnavailable(
            f"{what} was given up after {seconds:g} s: it waited for {_named(found) or 'locks'}. Nothing of it was "
            "done; upgrade again when that is over, or wait for longer (--wait-seconds)"
        ) from refusal


def _briefly(conn: Connection, act: Callable[[], None], seconds: float) -> None:
    with conn.transaction():
        conn.execute(_SQL["be_brief"], {"lock_timeout": f"{round(seconds * 1000)}ms"})
        act()


@contextmanager
def _seeing_whom(conn: Connection, looking: Connection) -> Iterator[list[Rows]]:
    """For as long as the block lasts, the list gets what was seen of those whom `conn` waits for."""
    seen: list[Rows] = []
    over = Event()
    eyes = Thread(target=_look, args=(conn.info.backend_pid, looking, over, seen), name="holdfast obstacles")
    eyes.start()
    try:
        yield seen
    finally:
        over.set()
        eyes.join()


def _look(pid: int, looking: Connection, over: Event, seen: list[Rows]) -> None:
    while not over.wait(_LOOK_SECONDS):
        try:
            found = looking.execute(_SQL["obstacles"], {"pid": pid}).fetchall()
        except psycopg.Error:
            return  # whoever waits learns for itself what has become of the server
        if found:
            seen.append(found)


def _pids(found: Rows) -> Sequence[int]:
    return [row["pid"] for row in found]


def _is_autovacuum(found: Rows) -> bool:
    return bool(found) and all(row["autovacuum"] for row in found)


def _named(found: Rows) -> str:
    return ", ".join(_name(row) for row in found)


def _name(row: Mapping[str, Any]) -> str:
    if not row["pid"]:
        return "a prepared transaction (pg_prepared_xacts names it)"
    if row["autovacuum"]:
        return f"pid {row['pid']} (autovacuum)"
    since = (
        f"in a transaction since {row['since'].astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        if row["since"]
        else f"since when is hidden from this login: grant pg_read_all_stats to {row['us']}"
    )
    return f"pid {row['pid']} ({row['name'] or 'without a name'!r} of {row['login']}, {since})"
