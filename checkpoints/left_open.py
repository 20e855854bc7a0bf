"""What a run leaves behind when it ends: calls without an outcome, of any of its attempts, and questions.

Whoever made a call may be gone, and after the end nobody asks for it again unless someone resumes the run. So the
transaction that ends the run says the last word: what only reads (a model call too) has failed, and counts as spent in
full; an effect is *unknown*, and keeps its reservation until a resumed run has found out what became of it.
"""

from holdfast.checkpoints.approvals import withdraw
from holdfast.checkpoints.database import Connection
from holdfast.checkpoints.queries import load_queries
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import RunId, TenantId, ThreadId

_SQL = load_queries(__name__, "left_open.sql")


async def close_left_open(
    conn: Connection, tenant_id: TenantId, run_id: RunId, thread_id: ThreadId
) -> list[EventDraft]:
    """Close what is open of a run that ends in the caller's transaction, and withdraw what it asks; returns the
    events to write. The caller has the run's row and its lease, if there is one, for itself."""
    whose = {"tenant_id": tenant_id, "run_id": run_id, "thread_id": thread_id}
    closed = await (await conn.execute(_SQL["close_left_open"], whose)).fetchall()
    withdrawn = await withdraw(conn, run_id)
    if spent := [row["call_id"] for row in closed if row["status"] == "failed"]:
        await conn.execute(_SQL["settle_left_open"], {"tenant_id": tenant_id, "calls": spent})
    told = [
        EventDraft(
            kind=EventKind(f"{row['kind']}.failed") if row["status"] == "failed" else EventKind.CALL_UNKNOWN,
            node=row["node"],
            task_id=row["task_id"],
            call_id=row["call_id"],
            payload={"name": row["name"], "reason": "the run ended before it was known"},
        )
        for row in closed
    ]
    return [*told, *withdrawn]
