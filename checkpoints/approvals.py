"""The inbox, on Postgres. A decision is taken by compare-and-set, and moves the run in the same commit."""

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.checkpoints.database import Connection, Database
from holdfast.checkpoints.events import write_events, write_events_of
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.records import Records, event_row, question_row
from holdfast.checkpoints.sealed_documents import APPROVALS, Documents, with_json
from holdfast.contracts.approvals import Approval, ApprovalRequest, ApprovalStatus, DecisionType, Ruling
from holdfast.contracts.canonical import plain
from holdfast.contracts.errors import Conflict, InvalidRequest, NotFound
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import ApprovalId, RunId, TenantId, ThreadId, uuid_text
from holdfast.contracts.ports import Ids
from holdfast.contracts.runs import Owner
from holdfast.contracts.tenancy import Principal

_SQL = load_queries(__name__, "approvals.sql")
_STATUS_OF: Mapping[DecisionType, ApprovalStatus] = {
    "approve": ApprovalStatus.APPROVED,
    "edit": ApprovalStatus.EDITED,
    "reject": ApprovalStatus.REJECTED,
    "respond": ApprovalStatus.RESPONDED,
}


class PostgresApprovals:
    """`contracts.ports.Approvals` on Postgres."""

    def __init__(self, database: Database, ids: Ids) -> None:
        self._database = database
        self._ids = ids

    async def ask(self, owner: Owner, request: ApprovalRequest, *, event: EventDraft) -> Approval:
        columns = _columns(self._database.documents, owner, request, self._ids.new())
        async with self._database.owned(owner) as conn:
            asked = await _one(conn, "ask_approval", columns)
            if asked is not None:
                await write_events_of(conn, owner, [event])
                return asked
            there = await _one(conn, "approval_of_interrupt", columns)
            assert there is not None, "the interrupt was asked already"
            return there

    async def stage(self, owner: Owner, request: ApprovalRequest, *, event: EventDraft) -> None:
        if owner.attached:
            await self.ask(owner, request, event=event)
            return
        approval_id = self._ids.new()
        records = Records(
            questions=[question_row(_facts(self._database.documents, owner, request, approval_id))],
            events=[event_row(event, owner.attempt, question=approval_id)],
        )
        self._database.writer.stage(self._database.writer.pen(owner), request.task_id, records)

    async def get(self, tenant_id: TenantId, approval_id: ApprovalId) -> Approval:
        async with self._database.tenant(tenant_id) as conn:
            return await _get(conn, tenant_id, ApprovalId(uuid_text(approval_id, what="approval")))

    async def of_interrupt(self, tenant_id: TenantId, thread_id: ThreadId, interrupt_id: str) -> Approval | None:
        wanted = {
            "tenant_id": tenant_id,
            "thread_id": uuid_text(thread_id, what="thread"),
            "interrupt_id": interrupt_id,
        }
        async with self._database.tenant(tenant_id) as conn:
            return await _one(conn, "approval_of_interrupt", wanted)

    async def of_task(self, tenant_id: TenantId, thread_id: ThreadId, task_id: str) -> Sequence[Approval]:
        rows = await self._database.reader.approvals(tenant_id, uuid_text(thread_id, what="thread"), task_id)
        return [_approval(self._database.documents, row) for row in rows]

    async def find(
        self,
        tenant_id: TenantId,
        *,
        run_id: RunId | None = None,
        thread_key: str | None = None,
        pending_only: bool = True,
        limit: int = 100,
    ) -> Sequence[Approval]:
        wanted = {
            "tenant_id": tenant_id,
            "run_id": None if run_id is None else uuid_text(run_id, what="run"),
            "thread_key": thread_key,
            "pending_only": pending_only,
            "limit": limit,
        }
        async with self._database.tenant(tenant_id) as conn:
            return await _all(conn, "find_approvals", wanted)

    async def tenant_of(self, principal: Principal, approval_id: ApprovalId) -> TenantId:
        approval_id = ApprovalId(uuid_text(approval_id, what="approval"))
        async with self._database.engine() as conn:
            row = await (await conn.execute(_SQL["tenant_of_approval"], {"approval_id": approval_id})).fetchone()
        if row is None or not principal.may_act_for(row["tenant_id"]):
            raise _no_approval(approval_id)
        return TenantId(row["tenant_id"])

    async def decide(
        self,
        principal: Principal,
        tenant_id: TenantId,
        approval_id: ApprovalId,
        ruling: Ruling,
        *,
        decision: Mapping[str, Any],
        granted_digest: str | None,
        event: EventDraft,
    ) -> Approval:
        approval_id = ApprovalId(uuid_text(approval_id, what="approval"))
        if not principal.may_act_for(tenant_id):
            raise _no_approval(approval_id)
        stored = self._database.documents.sealed(APPROVALS, tenant_id, approval_id, {"decision": plain(decision)})
        ruled = {
            "approval_id": approval_id,
            "status": _STATUS_OF[ruling.type],
            "decided_by": principal.user_id,
            "granted_digest": granted_digest,
            **with_json(APPROVALS, stored),
        }
        async with self._database.tenant(tenant_id) as conn:
            run = await _lock_run_of(conn, tenant_id, approval_id)
            standing = await _get(conn, tenant_id, approval_id)
            if standing.status is ApprovalStatus.PENDING and ruling.type not in standing.allowed:
                raise InvalidRequest(
                    f"approval {approval_id} cannot be answered with {ruling.type!r}; "
                    f"use one of {', '.join(standing.allowed)}",
                    allowed=list(standing.allowed),
                )
            decided = await _one(conn, "decide_approval", ruled)
            if decided is not None:
                drafts = [event, *await _resume(conn, run["run_id"], like=event)]
                await _write(conn, tenant_id, run, drafts)
                return decided
            # Perhaps it is overdue and nobody has said so yet. That is recorded here, whoever is refused.
            await _expire(conn, tenant_id, run, [approval_id])
            standing = await _get(conn, tenant_id, approval_id)
        raise _decided_already(standing)

    async def expire(self, *, principal: Principal, limit: int = 100) -> Sequence[Approval]:
        seen = None if principal.tenants is None else list(principal.tenants)
        async with self._database.engine() as conn:
            found = await conn.execute(_SQL["overdue_approvals"], {"tenants": seen, "limit": limit})
            overdue = await found.fetchall()
        expired: list[Approval] = []
        for due in overdue:
            async with self._database.tenant(due["tenant_id"]) as conn:
                run = await (await conn.execute(_SQL["lock_run"], due)).fetchone()
                assert run is not None, "an approval has its run"
                expired += await _expire(conn, due["tenant_id"], run, due["approval_ids"])
        return expired


async def set_aside_withdrawn(conn: Connection, tenant_id: TenantId, thread_id: str) -> None:
    """Let the questions that were withdrawn be asked anew by the run that is admitted in the caller's transaction."""
    await conn.execute(_SQL["set_aside_withdrawn"], {"tenant_id": tenant_id, "thread_id": thread_id})


async def withdraw(conn: Connection, run_id: RunId) -> list[EventDraft]:
    """Take back what is still asked of a run that ends in the caller's transaction; returns the events to write."""
    found = await conn.execute(_SQL["withdraw_approvals"], {"run_id": run_id})
    return [
        EventDraft(kind=EventKind.APPROVAL_WITHDRAWN, payload={"approval_id": row["approval_id"]})
        for row in await found.fetchall()
    ]


async def _expire(
    conn: Connection, tenant_id: TenantId, run: dict[str, Any], approval_ids: Sequence[Any]
) -> Sequence[Approval]:
    """Expire what is overdue of a locked run, and let the run go on to tell its model so."""
    expired = await _all(conn, "expire_approvals", {"approval_ids": list(approval_ids)})
    if expired:
        drafts = [EventDraft(kind=EventKind.APPROVAL_EXPIRED, payload={"approval_id": one.id}) for one in expired]
        await _write(conn, tenant_id, run, [*drafts, *await _resume(conn, run["run_id"], like=drafts[0])])
    return expired


async def _resume(conn: Connection, run_id: str, *, like: EventDraft) -> list[EventDraft]:
    """Queue the run if it is parked; one that runs will see the decision when it comes to rest."""
    queued = await conn.execute(_SQL["resume_run"], {"run_id": run_id})
    if not queued.rowcount:
        return []
    return [EventDraft(kind=EventKind.RUN_QUEUED, trace_id=like.trace_id, span_id=like.span_id)]


async def _lock_run_of(conn: Connection, tenant_id: TenantId, approval_id: ApprovalId) -> dict[str, Any]:
    wanted = {"tenant_id": tenant_id, "approval_id": approval_id}
    row = await (await conn.execute(_SQL["lock_run_of_approval"], wanted)).fetchone()
    if row is None:
        raise _no_approval(approval_id)
    return row


async def _write(conn: Connection, tenant_id: TenantId, run: dict[str, Any], drafts: Sequence[EventDraft]) -> None:
    await write_events(conn, tenant_id=tenant_id, run_id=run["run_id"], attempt=run["attempt"], drafts=drafts)


async def _get(conn: Connection, tenant_id: TenantId, approval_id: ApprovalId) -> Approval:
    approval = await _one(conn, "get_approval", {"tenant_id": tenant_id, "approval_id": approval_id})
    if approval is None:
        raise _no_approval(approval_id)
    return approval


async def _one(conn: Connection, query: str, wanted: Mapping[str, Any]) -> Approval | None:
    row = await (await conn.execute(_SQL[query], wanted)).fetchone()
    return None if row is None else _approval(conn.documents, row)


async def _all(conn: Connection, query: str, wanted: Mapping[str, Any]) -> Sequence[Approval]:
    return [_approval(conn.documents, row) for row in await (await conn.execute(_SQL[query], wanted)).fetchall()]


def _facts(documents: Documents, owner: Owner, request: ApprovalRequest, approval_id: str) -> dict[str, Any]:
    """The columns of a question, as JSON has them."""
    asked = {"payload": plain(request.payload), "args": plain(request.args)}
    return {
        **documents.sealed(APPROVALS, owner.tenant_id, approval_id, asked),
        "approval_id": approval_id,
        "thread_id": owner.thread_id,
        "interrupt_id": request.interrupt_id,
        "kind": request.kind,
        "node": request.node,
        "task_id": request.task_id,
        "allowed": list(request.allowed),
        "tool_name": request.tool_name,
        "args_digest": request.args_digest,
        "policy_version": request.policy_version,
        "rule": request.rule,
        "call_id": request.call_id,
        "identity_key": request.identity_key,
        "expires_in_seconds": request.expires_in_seconds,
    }


def _columns(documents: Documents, owner: Owner, request: ApprovalRequest, approval_id: str) -> dict[str, Any]:
    facts = _facts(documents, owner, request, approval_id)
    whose = {"tenant_id": owner.tenant_id, "run_id": owner.run_id}
    return with_json(APPROVALS, facts | whose)


def _approval(documents: Documents, row: Mapping[str, Any]) -> Approval:
    """An approval from a whole row of its table."""
    row = documents.opened(APPROVALS, row)
    texts = {name: str(row[name]) for name in ("run_id", "thread_id")}
    call_id = None if row["call_id"] is None else str(row["call_id"])
    known = {name: value for name, value in row.items() if name in Approval.model_fields}
    return Approval.model_validate(known | texts | {"id": str(row["approval_id"]), "call_id": call_id})


def _no_approval(approval_id: ApprovalId) -> NotFound:
    return NotFound(f"there is no approval {approval_id} here; see that the id is right", approval_id=approval_id)


def _decided_already(approval: Approval) -> Conflict:
    when = "" if approval.decided_at is None else f" at {approval.decided_at:%Y-%m-%d %H:%M:%S %Z}"
    by = "" if approval.decided_by is None else f" by {approval.decided_by!r}"
    return Conflict(
        f"approval {approval.id} is {approval.status} already{by}{when}, so it cannot be decided",
        approval_id=approval.id,
        status=approval.status,
        decided_by=approval.decided_by,
    )
