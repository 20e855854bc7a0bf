"""Where a new run stands: on its thread, or on a fork's, or where an ended run stopped.

Asked under the tenant's lock, so that no other run comes to the thread meanwhile.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.checkpoints.approvals import set_aside_withdrawn
from holdfast.checkpoints.copying import copy_history
from holdfast.checkpoints.database import Connection
from holdfast.checkpoints.events import Entry
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.vault import Vault
from holdfast.contracts.errors import Conflict, NotFound
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.runs import Forked, Resumed, RunRequest, RunStatus
from holdfast.policies.retention import NO_FORK, NO_RESUME, require_contents
from holdfast.policies.travel import require_resumable
from holdfast.telemetry.spans import traced_event

_SQL = load_queries(__name__, "origins.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The thread of a new run, and what its origin's log is told."""

    thread_id: str
    origin: RunId | None = None
    attempt: int = 0
    drafts: tuple[EventDraft, ...] = ()

    def told(self, tenant_id: TenantId) -> list[Entry]:
        """What the origin's log says of it."""
        if self.origin is None:
            return []
        return [
            Entry(tenant_id=tenant_id, run_id=self.origin, attempt=self.attempt, draft=draft) for draft in self.drafts
        ]


async def place(conn: Connection, request: RunRequest, *, run_id: RunId, new_thread: str, vault: Vault | None) -> Place:
    """The place of a run that is admitted in the caller's transaction; a fork's history is copied to it.

    Raises `NotFound` for a run or a checkpoint that is not there, `Conflict` for one that cannot be gone on from.
    """
    match request.origin:
        case None:
            return Place(thread_id=await _opened(conn, "open_thread", request, new_thread))
        case Forked() as fork:
            return await _forked(conn, vault, request, fork, run_id, new_thread)
        case Resumed() as resumed:
            return await _resumed(conn, request, resumed, run_id)


async def _forked(
    conn: Connection, vault: Vault | None, request: RunRequest, fork: Forked, run_id: RunId, new_thread: str
) -> Place:
    tenant_id = request.tenant.tenant_id
    origin = await _locked(conn, tenant_id, fork.run_id)
    require_contents(fork.run_id, origin["contents_pruned_at"], NO_FORK)
    thread_id = await _opened(conn, "fork_thread", request, new_thread, salt=fork.salt)
    await copy_history(
        conn, vault, tenant_id=tenant_id, source=origin["thread_id"], target=thread_id, at=fork.checkpoint_id
    )
    facts = {"from": fork.run_id, "to": run_id, "checkpoint_id": fork.checkpoint_id, "by": fork.by}
    return Place(
        thread_id=thread_id,
        origin=fork.run_id,
        attempt=origin["attempt"],
        drafts=(traced_event(EventKind.RUN_FORKED, facts | {"thread": request.thread_key}),),
    )


async def _resumed(conn: Connection, request: RunRequest, resumed: Resumed, run_id: RunId) -> Place:
    origin = await _locked(conn, request.tenant.tenant_id, resumed.run_id)
    require_resumable(
        resumed.run_id,
        RunStatus(origin["status"]),
        attached=origin["attached"],
        followed_by=origin["followed_by"],
    )
    require_contents(resumed.run_id, origin["contents_pruned_at"], NO_RESUME)
    if origin["pruned"]:
        # From the beginning its calls would be other ones, and happen again.
        raise Conflict(
            f"the checkpoints of run {resumed.run_id} were pruned, so nothing can go on from it; start a new run"
        )
    await set_aside_withdrawn(conn, request.tenant.tenant_id, origin["thread_id"])
    facts = {"from": resumed.run_id, "to": run_id, "by": resumed.by}
    return Place(
        thread_id=origin["thread_id"],
        origin=resumed.run_id,
        attempt=origin["attempt"],
        drafts=(traced_event(EventKind.RUN_RESUMED, facts),),
    )


async def _locked(conn: Connection, tenant_id: TenantId, run_id: RunId) -> Mapping[str, Any]:
    found = await conn.execute(_SQL["lock_origin"], {"tenant_id": tenant_id, "run_id": run_id})
    if (row := await found.fetchone()) is None:
        raise NotFound(f"there is no run {run_id} here; see that the id and the tenant are right", run_id=run_id)
    return row


async def _opened(conn: Connection, query: str, request: RunRequest, new_thread: str, **more: str) -> str:
    key = request.thread_key
    thread = {"thread_id": new_thread, "tenant_id": request.tenant.tenant_id, "thread_key": key, **more}
    row = await (await conn.execute(_SQL[query], thread)).fetchone()
    if row is None:
        raise Conflict(f"there is a thread {key!r} already; a fork needs a new one", thread_key=key)
    return str(row["thread_id"])
