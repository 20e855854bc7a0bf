"""Sealing again what stands in the database: for the thread that it was copied to, under another key, or for the first
time."""

from dataclasses import dataclass
from typing import Any

from psycopg import AsyncCursor
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.sealed_rows import SEALED, Body, SealedRows, Typed

_SQL = load_queries(__name__, "resealing.sql")

Cursor = AsyncCursor[DictRow]


async def seal_thread(
    cursor: Cursor, form: SealedRows, thread: str, *, sealed_for: str | None = None, clear_too: bool = False
) -> None:
    """Seal a thread's rows with the key in force in the caller's transaction; those copied from another thread are
    still `sealed_for` that one.

    Raises `SealBroken` for a row that does not open, and for one in the clear unless `clear_too`: whoever wrote it,
    sealing it would vouch for it.
    """
    checkpoints = await _all(cursor, "checkpoints_of_thread", thread)
    blobs = await _all(cursor, "blobs_of_thread", thread)
    writes = await _all(cursor, "writes_of_thread", thread)
    in_blobs = {(row["checkpoint_ns"], row["channel"], row["version"]) for row in blobs}
    places = _Places(form, sealed_for or thread, thread, clear_too)
    resealed = {
        "change_checkpoint": [places.checkpoint(row, in_blobs) for row in checkpoints],
        "change_blob": [places.blob(row) for row in blobs],
        "change_write": [places.write(row) for row in writes],
    }
    # Changed where they stand: what is held is not deleted, by whomever.
    for name, rows in resealed.items():
        await cursor.executemany(_SQL[name], ({**row, "thread": thread} for row in rows))


async def _all(cursor: Cursor, query: str, thread: str) -> list[DictRow]:
    return await (await cursor.execute(_SQL[query], {"thread": thread}, binary=True)).fetchall()


@dataclass(frozen=True, slots=True)
class _Places:
    """Makes the rows of a thread anew, from where they are for where they are to be."""

    form: SealedRows
    source: str
    target: str
    clear_too: bool

    def checkpoint(self, row: DictRow, in_blobs: set[tuple[str, str, str]]) -> dict[str, Any]:
        where = (row["checkpoint_ns"], row["checkpoint_id"])
        if SEALED not in row["checkpoint"] and self.clear_too:
            body = _clear_body(row, in_blobs)
        else:
            body = self.form.opened_body((self.source, *where), row["checkpoint"], row["metadata"])
        document, marks = self.form.documents(
            (self.target, *where), body["checkpoint"], body["metadata"], apart=body["apart"]
        )
        return {**row, "checkpoint": Jsonb(document), "metadata": Jsonb(marks)}

    def blob(self, row: DictRow) -> dict[str, Any]:
        namespace, version, channel, typed = row["checkpoint_ns"], row["version"], row["channel"], _typed(row)
        if not self._is_clear(typed):
            channel, typed = self.form.opened_blob((self.source, namespace), version, channel, typed)
        return {
            **row,
            "was": row["channel"],
            **_named(self.form.blob((self.target, namespace), channel, version, typed)),
        }

    def write(self, row: DictRow) -> dict[str, Any]:
        where, channel, typed = (row["checkpoint_ns"], row["checkpoint_id"]), row["channel"], _typed(row)
        task = (row["task_id"], row["idx"], row["task_path"])
        if not self._is_clear(typed):
            channel, typed = self.form.opened_write((self.source, *where), task, channel, typed)
        return {**row, **_named(self.form.write((self.target, *where), task, channel, typed))}

    def _is_clear(self, typed: Typed) -> bool:
        return self.clear_too and not typed[0].startswith(f"{SEALED}:")


def _clear_body(row: DictRow, in_blobs: set[tuple[str, str, str]]) -> Body:
    checkpoint = row["checkpoint"]
    apart = [
        channel
        for channel, version in checkpoint["channel_versions"].items()
        if (row["checkpoint_ns"], channel, str(version)) in in_blobs
    ]
    return Body(checkpoint=checkpoint, metadata=row["metadata"], apart=apart)


def _typed(row: DictRow) -> Typed:
    return row["type"] or "", row["blob"] or b""  # LangGraph leaves both out for a value that is not there


def _named(fields: tuple[str, str, bytes]) -> dict[str, Any]:
    return dict(zip(("channel", "type", "blob"), fields, strict=True))
