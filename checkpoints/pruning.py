"""Deleting checkpoints: whole threads, or all but the latest of each namespace, which is LangGraph's own doing."""

from collections.abc import Sequence
from contextlib import suppress

from langgraph.checkpoint.postgres.base import _aexecute, _keep_latest, _refuse_delta_threads
from psycopg import AsyncCursor
from psycopg.rows import DictRow

from holdfast.checkpoints.queries import load_queries

_SQL = load_queries(__name__, "saver.sql")

Cursor = AsyncCursor[DictRow]


async def delete_threads(cursor: Cursor, threads: Sequence[str]) -> None:
    """Delete everything that `threads` have saved."""
    for table in ("delete_checkpoints", "delete_blobs", "delete_writes"):
        await cursor.execute(_SQL[table], {"threads": list(threads)})


async def refuse_delta_threads(cursor: Cursor, threads: Sequence[str]) -> None:
    """Raise `NotImplementedError`, as LangGraph does, when one of `threads` has a delta channel: its state is put
    together from the writes of all checkpoints back to a snapshot."""
    await _aexecute(cursor, _refuse_delta_threads(list(threads)))


async def keep_latest(cursor: Cursor, thread: str) -> None:
    """Delete all of a thread that its latest checkpoints do not need, in a transaction that sees one snapshot."""
    await _aexecute(cursor, _keep_latest(thread))


async def keep_latest_unless_delta(cursor: Cursor, thread: str) -> None:
    """The same, and nothing where the thread has a delta channel."""
    with suppress(NotImplementedError):
        await keep_latest(cursor, thread)
