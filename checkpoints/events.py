"""The append-only log of each run, on Postgres."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.checkpoints.database import Connection, Database
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.records import Records, event_row
from holdfast.contracts.canonical import canonical
from holdfast.contracts.chain import Head, Link
from holdfast.contracts.errors import InvariantViolated, PermanentDependency
from holdfast.contracts.events import Event, EventDraft, EventKind
from holdfast.contracts.ids import RunId, TenantId, uuid_text
from holdfast.contracts.runs import Owner

_SQL = load_queries(__name__, "events.sql")
_COLUMNS = ("kind", "node", "task_id", "call_id", "trace_id", "span_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An event to be written, and for whom."""

    tenant_id: TenantId
    run_id: RunId
    attempt: int
    draft: EventDraft


async def write_events(
    conn: Connection,
    *,
    tenant_id: TenantId,
    run_id: RunId,
    attempt: int,
    drafts: Sequence[EventDraft],
) -> None:
    """Number `drafts`, chain them and write them in the caller's transaction, as its last statement: from here on to
    the commit, other writers of the run wait. The caller has checked that the run may be written for."""
    await write_entries(
        conn, [Entry(tenant_id=tenant_id, run_id=run_id, attempt=attempt, draft=draft) for draft in drafts]
    )


async def write_events_of(conn: Connection, owner: Owner, drafts: Sequence[EventDraft]) -> None:
    """The same for an owner, who holds its run in the caller's transaction."""
    await write_events(conn, tenant_id=owner.tenant_id, run_id=owner.run_id, attempt=owner.attempt, drafts=drafts)


async def write_entries(conn: Connection, entries: Sequence[Entry]) -> None:
    """As `write_events`, for any number of runs in one statement."""
    if not entries:
        return
    written = await conn.execute(_SQL["write_events"], _columns(entries))
    if written.rowcount != len(entries):
        runs = sorted({entry.run_id for entry in entries})
        raise InvariantViolated(f"a run has no head to number its events by: {', '.join(runs)}", run_ids=runs)


def _columns(entries: Sequence[Entry]) -> dict[str, Any]:
    columns: dict[str, Any] = {name: [getattr(entry.draft, name) for entry in entries] for name in _COLUMNS}
    return columns | {
        "tenant_id": [entry.tenant_id for entry in entries],
        "run_id": [entry.run_id for entry in entries],
        "attempt": [entry.attempt for entry in entries],
        "payload": [canonical(entry.draft.payload) for entry in entries],
    }


class PostgresEvents:
    """`contracts.ports.Events` on Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, owner: Owner, events: Sequence[EventDraft]) -> None:
        if owner.attached:
            async with self._database.owned(owner) as conn:
                await write_events_of(conn, owner, events)
            return
        await self._database.writer.write(self._database.writer.pen(owner), records=_records(owner, events))

    async def later(self, owner: Owner, events: Sequence[EventDraft]) -> None:
        if owner.attached:
            await self.append(owner, events)
            return
        self._database.writer.later(self._database.writer.pen(owner), _records(owner, events))

    async def stage(self, owner: Owner, task_id: str, events: Sequence[EventDraft]) -> None:
        if owner.attached:
            await self.append(owner, events)
            return
        self._database.writer.stage(self._database.writer.pen(owner), task_id, _records(owner, events))

    async def links(self, tenant_id: TenantId, run_id: RunId, *, after: int = 0, limit: int = 1000) -> Sequence[Link]:
        wanted = {"tenant_id": tenant_id, "run_id": uuid_text(run_id, what="run"), "after": after, "limit": limit}
        async with self._database.tenant(tenant_id) as conn:
            found = await conn.execute(_SQL["read_links"], wanted)
            return [Link(**row) for row in await found.fetchall()]

    async def head(self, tenant_id: TenantId, run_id: RunId) -> Head | None:
        wanted = {"tenant_id": tenant_id, "run_id": uuid_text(run_id, what="run")}
        async with self._database.tenant(tenant_id) as conn:
            row = await (await conn.execute(_SQL["read_head"], wanted)).fetchone()
            return None if row is None else Head(**row)

    async def logs(self, tenant_id: TenantId, *, after: RunId | None = None, limit: int = 1000) -> Sequence[RunId]:
        async with self._database.tenant(tenant_id) as conn:
            found = await conn.execute(_SQL["find_logs"], {"tenant_id": tenant_id, "after": after, "limit": limit})
            return [RunId(row["run_id"]) for row in await found.fetchall()]

    async def read(self, tenant_id: TenantId, run_id: RunId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        wanted = {"tenant_id": tenant_id, "run_id": uuid_text(run_id, what="run"), "after": after, "limit": limit}
        async with self._database.tenant(tenant_id) as conn:
            found = await conn.execute(_SQL["read_events"], wanted)
            return [_event(row) for row in await found.fetchall()]

    async def latest(self, tenant_id: TenantId, run_id: RunId, kind: EventKind) -> Event | None:
        wanted = {"tenant_id": tenant_id, "run_id": uuid_text(run_id, what="run"), "kind": kind}
        async with self._database.tenant(tenant_id) as conn:
            row = await (await conn.execute(_SQL["latest_event"], wanted)).fetchone()
        return None if row is None else _event(row)


def _records(owner: Owner, events: Sequence[EventDraft]) -> Records:
    return Records(events=[event_row(draft, owner.attempt) for draft in events])


def _event(row: dict[str, Any]) -> Event:
    run_id, seq = row["run_id"], row["seq"]
    try:
        if row["at"] is None:
            raise ValueError("its time is no instant")
        return Event(**row | {"kind": EventKind(row["kind"]), "payload": json.loads(row["payload"])})
    except ValueError as error:
        raise PermanentDependency(
            f"event {seq} of run {run_id} cannot be read: {error}. It was altered, or written by a newer version; "
            f"`holdfast events {run_id} --verify` tells which",
            run_id=run_id,
            seq=seq,
        ) from error
