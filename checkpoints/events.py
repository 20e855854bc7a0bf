"""The append-only log of each run, on Postgres."""

import json
from collections.abc import Sequence
from typing import Any

from holdfast.checkpoints.database import Connection, Database
from holdfast.checkpoints.fence import hold
from holdfast.checkpoints.queries import load_queries
from holdfast.contracts.canonical import canonical
from holdfast.contracts.errors import InvariantViolated
from holdfast.contracts.events import Event, EventDraft, EventKind
from holdfast.contracts.ids import RunId, TenantId, uuid_text
from holdfast.contracts.ports import Ids
from holdfast.contracts.runs import Owner

_SQL = load_queries(__name__, "events.sql")
_COLUMNS = ("kind", "node", "task_id", "call_id", "trace_id", "span_id")


async def write_events(
    conn: Connection,
    *,
    tenant_id: TenantId,
    run_id: RunId,
    attempt: int,
    drafts: Sequence[EventDraft],
) -> None:
    """Number `drafts` and write them in the caller's transaction, as its last statement: from here on to the commit,
    other writers of the run wait. The caller has checked that the run may be written for."""
    if not drafts:
        return
    columns: dict[str, Any] = {name: [getattr(draft, name) for draft in drafts] for name in _COLUMNS}
    written = await conn.execute(
        _SQL["write_events"],
        columns
        | {
            "tenant_id": tenant_id,
            "run_id": run_id,
            "attempt": attempt,
            "payload": [canonical(draft.payload) for draft in drafts],
        },
    )
    if written.rowcount != len(drafts):
        raise InvariantViolated(f"run {run_id} has no head to number its events by", run_id=run_id)


class PostgresEvents:
    """`contracts.ports.Events` on Postgres."""

    def __init__(self, database: Database, ids: Ids) -> None:
        self._database = database

    async def append(self, owner: Owner, events: Sequence[EventDraft]) -> None:
        async with self._database.tenant(owner.tenant_id) as conn:
            await hold(conn, owner)
            await write_events(
                conn, tenant_id=owner.tenant_id, run_id=owner.run_id, attempt=owner.attempt, drafts=events
            )

    async def read(self, tenant_id: TenantId, run_id: RunId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        wanted = {"tenant_id": tenant_id, "run_id": uuid_text(run_id, what="run"), "after": after, "limit": limit}
        async with self._database.tenant(tenant_id) as conn:
            found = await conn.execute(_SQL["read_events"], wanted)
            return [_event(row) for row in await found.fetchall()]


def _event(row: dict[str, Any]) -> Event:
    return Event(**row | {"kind": EventKind(row["kind"]), "payload": json.loads(row["payload"])})
