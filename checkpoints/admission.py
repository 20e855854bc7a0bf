"""Letting a run in: exactly once, within its tenant's bound, and with everything it needs, in one commit.

The tenant's row is locked for as long as that takes. So admissions of one tenant follow one another (a commit each,
about a millisecond), and in return the queue's bound cannot be passed, the same run cannot be admitted twice, and
the runs of a thread are created in the order in which others come to see them, which claiming relies on.
"""

from psycopg.types.json import Jsonb

from holdfast.checkpoints.database import Connection
from holdfast.checkpoints.events import write_events
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.tenants import unknown_tenant
from holdfast.contracts.canonical import plain
from holdfast.contracts.errors import AdmissionRefused, Conflict
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.runs import RunRequest
from holdfast.contracts.tenancy import Tenant
from holdfast.telemetry.spans import trace_ids

_SQL = load_queries(__name__, "admission.sql")
_RETRY_AFTER_SECONDS = 5.0


async def admit(conn: Connection, request: RunRequest, *, run_id: RunId, new_thread: str) -> None:
    """Write the run, unless it was admitted before. `new_thread` is the thread's id if it is used the first time.

    Raises `AdmissionRefused`, `NotFound` for an unknown tenant, `Conflict` for a run id with another request.
    """
    tenant_id, asked = request.tenant.tenant_id, request.digest
    tenant = await _lock_tenant(conn, tenant_id)
    if await _admitted_already(conn, tenant_id, run_id, asked):
        return
    if not request.attached:
        await _require_room(conn, tenant)
    thread = {"thread_id": new_thread, "tenant_id": tenant_id, "thread_key": request.thread_key}
    row = await (await conn.execute(_SQL["open_thread"], thread)).fetchone()
    assert row is not None, "the thread was made or found"
    await _insert(conn, request, run_id=run_id, thread_id=str(row["thread_id"]), asked=asked)
    await write_events(
        conn, tenant_id=tenant_id, run_id=run_id, attempt=1 if request.attached else 0, drafts=[_admitted(request)]
    )


async def _lock_tenant(conn: Connection, tenant_id: TenantId) -> Tenant:
    row = await (await conn.execute(_SQL["lock_tenant"], {"tenant_id": tenant_id})).fetchone()
    if row is None:
        raise unknown_tenant(tenant_id)
    return Tenant.model_validate(row["terms"])


async def _admitted_already(conn: Connection, tenant_id: TenantId, run_id: RunId, asked: str) -> bool:
    found = await conn.execute(_SQL["request_digest"], {"tenant_id": tenant_id, "run_id": run_id})
    row = await found.fetchone()
    if row is not None and row["request_digest"] != asked:
        raise Conflict(f"run {run_id} exists and was asked for with another request; use a new run id", run_id=run_id)
    return row is not None


async def _require_room(conn: Connection, tenant: Tenant) -> None:
    found = await conn.execute(_SQL["queue_is_full"], {"tenant_id": tenant.tenant_id, "bound": tenant.max_queued})
    row = await found.fetchone()
    if row is None or row["full"]:
        raise AdmissionRefused(
            f"{tenant.max_queued} runs of tenant {tenant.tenant_id!r} wait already, and no more may; "
            f"come back in {_RETRY_AFTER_SECONDS:g} seconds",
            retry_after_seconds=_RETRY_AFTER_SECONDS,
            max_queued=tenant.max_queued,
        )


async def _insert(conn: Connection, request: RunRequest, *, run_id: RunId, thread_id: str, asked: str) -> None:
    limits = request.limits
    admitted = await conn.execute(
        _SQL["admit_run"],
        {
            "run_id": run_id,
            "tenant_id": request.tenant.tenant_id,
            "thread_id": thread_id,
            "graph_name": request.graph_name,
            "graph_version": request.graph_version,
            "principal": Jsonb(request.tenant.model_dump(mode="json")),
            "input": request.input,
            "input_type": request.input_type,
            "request_digest": asked,
            "context": None if request.context is None else Jsonb(plain(request.context)),
            "limits": Jsonb(limits.model_dump(mode="json")),
            "deadline_seconds": limits.deadline_seconds,
            "max_attempts": request.max_attempts,
            "trace_parent": request.trace_parent,
            "attached": request.attached,
            "max_model_calls": limits.max_model_calls,
            "max_tool_calls": limits.max_tool_calls,
            "max_tokens": limits.max_tokens,
            "max_cost": limits.max_cost_microusd,
            "max_steps": limits.max_steps,
        },
    )
    if not admitted.rowcount:
        raise Conflict(f"the run id {run_id} is taken; use a new one", run_id=run_id)


def _admitted(request: RunRequest) -> EventDraft:
    facts = {
        "graph": request.graph_name,
        "graph_version": request.graph_version,
        "limits": request.limits,
        "user_id": request.tenant.user_id,
        "attached": request.attached,
    }
    trace_id, span_id = trace_ids()
    return EventDraft(kind=EventKind.RUN_ADMITTED, trace_id=trace_id, span_id=span_id, payload=facts)
