"""Letting a run in: exactly once, within its tenant's bound, and with everything it needs, in one commit.

The tenant's row is locked for as long as that takes. So admissions of one tenant follow one another (a commit each,
about a millisecond), and in return the queue's bound cannot be passed, the same run cannot be admitted twice, and
the runs of a thread are created in the order in which others come to see them, which claiming relies on.
"""

from psycopg.types.json import Jsonb

from holdfast.checkpoints.database import Connection
from holdfast.checkpoints.events import Entry, write_entries
from holdfast.checkpoints.ledger import limit_columns
from holdfast.checkpoints.origins import place
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.sealed_documents import RUNS, with_json
from holdfast.checkpoints.tenants import unknown_tenant
from holdfast.checkpoints.vault import Vault
from holdfast.contracts.canonical import plain
from holdfast.contracts.errors import AdmissionRefused, Conflict
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.runs import Forked, Resumed, RunRequest
from holdfast.contracts.tenancy import Tenant
from holdfast.telemetry.spans import traced_event

_SQL = load_queries(__name__, "admission.sql")
_RETRY_AFTER_SECONDS = 5.0


async def admit(conn: Connection, request: RunRequest, *, run_id: RunId, new_thread: str, vault: Vault | None) -> None:
    """Write the run, unless it was admitted before. `new_thread` is the thread's id if it is used the first time; a
    fork's history is sealed to it by `vault`, where there are keys.

    Raises `AdmissionRefused`, `NotFound` for an unknown tenant or an origin that the tenant has not, `Conflict` for a
    run id with another request and an origin that does not admit it.
    """
    tenant_id, asked = request.tenant.tenant_id, request.digest
    tenant = await _lock_tenant(conn, tenant_id)
    if await _admitted_already(conn, tenant_id, run_id, asked):
        return
    if not request.attached:
        await _require_room(conn, tenant)
    entered = await place(conn, request, run_id=run_id, new_thread=new_thread, vault=vault)
    await _insert(conn, request, run_id=run_id, thread_id=entered.thread_id, asked=asked)
    attempt = 1 if request.attached else 0
    own = [
        Entry(tenant_id=tenant_id, run_id=run_id, attempt=attempt, draft=draft)
        for draft in (_admitted(request), *entered.drafts)
    ]
    await write_entries(conn, [*own, *entered.told(tenant_id)])


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
    limits, tenant_id = request.limits, request.tenant.tenant_id
    given = {"input": request.input, "context": plain(request.context)}
    stored = conn.documents.sealed(RUNS, tenant_id, run_id, given)
    admitted = await conn.execute(
        _SQL["admit_run"],
        {
            "run_id": run_id,
            "tenant_id": tenant_id,
            "thread_id": thread_id,
            "graph_name": request.graph_name,
            "graph_version": request.graph_version,
            "principal": Jsonb(request.tenant.model_dump(mode="json")),
            "input_type": request.input_type,
            "request_digest": asked,
            **with_json(RUNS, stored),
            "limits": Jsonb(limits.model_dump(mode="json")),
            "deadline_seconds": request.working_seconds,
            "max_attempts": request.max_attempts,
            "trace_parent": request.trace_parent,
            "attached": request.attached,
            **_origin(request),
            **limit_columns(limits),
        },
    )
    if not admitted.rowcount:
        raise Conflict(f"the run id {run_id} is taken; use a new one", run_id=run_id)


def _origin(request: RunRequest) -> dict[str, str | None]:
    origin = request.origin
    return {
        "forked_from": origin.run_id if isinstance(origin, Forked) else None,
        "forked_at": origin.checkpoint_id if isinstance(origin, Forked) else None,
        "resumed_from": origin.run_id if isinstance(origin, Resumed) else None,
    }


def _admitted(request: RunRequest) -> EventDraft:
    facts = {
        "graph": request.graph_name,
        "graph_version": request.graph_version,
        "limits": request.limits,
        "user_id": request.tenant.user_id,
        "attached": request.attached,
    }
    return traced_event(EventKind.RUN_ADMITTED, facts)
