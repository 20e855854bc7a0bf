"""The inbox, the event log and the tenants in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from holdfast.contracts.approvals import Approval, ApprovalRequest, ApprovalStatus, DecisionType, Ruling
from holdfast.contracts.chain import GENESIS, Head, Link
from holdfast.contracts.errors import Conflict, InvalidRequest, NotFound
from holdfast.contracts.events import Event, EventDraft, EventKind
from holdfast.contracts.ids import ApprovalId, BudgetId, RunId, TenantId, ThreadId
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import Owner, RunStatus
from holdfast.contracts.tenancy import Principal, Tenant
from holdfast.testing.memory_state import BudgetRow, MemoryState, as_stored, page

_STATUS_OF: Mapping[DecisionType, ApprovalStatus] = {
    "approve": ApprovalStatus.APPROVED,
    "edit": ApprovalStatus.EDITED,
    "reject": ApprovalStatus.REJECTED,
    "respond": ApprovalStatus.RESPONDED,
}
_UNLIMITED = Limits(
    deadline_seconds=None,
    max_model_calls=None,
    max_tool_calls=None,
    max_tokens=None,
    max_cost_usd=None,
    max_steps=None,
)


class MemoryApprovals:
    """`contracts.ports.Approvals` in memory."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def stage(self, owner: Owner, request: ApprovalRequest, *, event: EventDraft) -> None:
        await self.ask(owner, request, event=event)

    async def ask(self, owner: Owner, request: ApprovalRequest, *, event: EventDraft) -> Approval:
        with self._state.commit() as tables:
            self._state.hold(owner)
            spot = (owner.thread_id, request.interrupt_id)
            if spot in tables.asked and not self._set_aside(tables.approvals[tables.asked[spot]]):
                return tables.approvals[tables.asked[spot]]
            stored = as_stored(request.model_dump(mode="json", exclude={"expires_in_seconds"}))
            approval = Approval.model_validate(
                stored
                | {
                    "id": self._state.ids.new(),
                    "tenant_id": owner.tenant_id,
                    "run_id": owner.run_id,
                    "thread_id": owner.thread_id,
                    "status": ApprovalStatus.PENDING,
                    "created_at": self._state.now(),
                    "expires_at": self._state.after(request.expires_in_seconds),
                }
            )
            tables.approvals[approval.id] = approval
            tables.asked[spot] = approval.id
            self._state.write(owner.run_id, event)
            return approval

    def _set_aside(self, approval: Approval) -> bool:
        """Whether the interrupt can be asked anew, its question having been withdrawn with its run."""
        if approval.status is not ApprovalStatus.WITHDRAWN:
            return False
        aside = f"{approval.interrupt_id} withdrawn {approval.id}"
        self._state.tables.approvals[approval.id] = approval.model_copy(update={"interrupt_id": aside})
        return True

    async def get(self, tenant_id: TenantId, approval_id: ApprovalId) -> Approval:
        approval = self._state.tables.approvals.get(approval_id)
        if approval is None or approval.tenant_id != tenant_id:
            raise NotFound(f"tenant {tenant_id!r} has no approval {approval_id}")
        return approval

    async def of_interrupt(self, tenant_id: TenantId, thread_id: ThreadId, interrupt_id: str) -> Approval | None:
        found = self._of(tenant_id, thread_id=thread_id, interrupt_id=interrupt_id)
        return found[0] if found else None

    async def of_task(self, tenant_id: TenantId, thread_id: ThreadId, task_id: str) -> Sequence[Approval]:
        found, now = self._of(tenant_id, thread_id=thread_id), self._state.now()
        return [
            approval.model_copy(update={"overdue": approval.expires_at <= now})
            for approval in found
            if f"{approval.task_id}/".startswith(f"{task_id}/")
        ]

    async def find(
        self,
        tenant_id: TenantId,
        *,
        run_id: RunId | None = None,
        thread_key: str | None = None,
        pending_only: bool = True,
        limit: int = 100,
    ) -> Sequence[Approval]:
        wanted: dict[str, object] = {} if run_id is None else {"run_id": run_id}
        if thread_key is not None:
            wanted["thread_id"] = self._state.tables.threads.get((tenant_id, thread_key))
        if pending_only:
            wanted["status"] = ApprovalStatus.PENDING
        return self._of(tenant_id, **wanted)[:limit]

    async def tenant_of(self, principal: Principal, approval_id: ApprovalId) -> TenantId:
        approval = self._state.tables.approvals.get(approval_id)
        if approval is None or not principal.may_act_for(approval.tenant_id):
            raise NotFound(f"there is no approval {approval_id} for {principal.user_id!r}")
        return approval.tenant_id

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
        if not principal.may_act_for(tenant_id):
            raise NotFound(f"there is no approval {approval_id} for {principal.user_id!r}")
        approval = await self.get(tenant_id, approval_id)
        if approval.status is ApprovalStatus.PENDING and ruling.type not in approval.allowed:
            raise InvalidRequest(f"approval {approval_id} cannot be answered with {ruling.type!r}")
        self._require_decidable(approval)
        with self._state.commit() as tables:
            decided = approval.model_copy(
                update={
                    "status": _STATUS_OF[ruling.type],
                    "decided_at": self._state.now(),
                    "decided_by": principal.user_id,
                    "decision": as_stored(decision),
                    "granted_digest": granted_digest,
                }
            )
            tables.approvals[approval_id] = decided
            self._state.write(approval.run_id, event)
            self._wake(approval.run_id)
            return decided

    async def expire(self, *, principal: Principal, limit: int = 100) -> Sequence[Approval]:
        with self._state.commit():
            overdue = [
                approval
                for approval in self._state.tables.approvals.values()
                if approval.status is ApprovalStatus.PENDING
                and approval.expires_at <= self._state.now()
                and principal.may_act_for(approval.tenant_id)
            ]
            return [self._expire(approval) for approval in overdue[:limit]]

    def _of(self, tenant_id: TenantId, **wanted: object) -> Sequence[Approval]:
        return [
            approval
            for approval in self._state.tables.approvals.values()
            if approval.tenant_id == tenant_id and all(getattr(approval, name) == is_ for name, is_ in wanted.items())
        ]

    def _require_decidable(self, approval: Approval) -> None:
        """Raise `Conflict` unless it is pending and in time; that it is overdue is recorded, whoever is refused."""
        if approval.status is ApprovalStatus.PENDING:
            if approval.expires_at > self._state.now():
                return
            with self._state.commit():
                approval = self._expire(approval)
        by = f" by {approval.decided_by!r}" if approval.decided_by else ""
        raise Conflict(f"approval {approval.id} is {approval.status} already{by}, so it cannot be decided")

    def _expire(self, approval: Approval) -> Approval:
        expired = approval.model_copy(update={"status": ApprovalStatus.EXPIRED, "decided_at": self._state.now()})
        self._state.tables.approvals[approval.id] = expired
        self._state.write(
            approval.run_id, EventDraft(kind=EventKind.APPROVAL_EXPIRED, payload={"approval_id": approval.id})
        )
        self._wake(approval.run_id)
        return expired

    def _wake(self, run_id: RunId) -> None:
        """Put an interrupted run back in the queue, its clock running again."""
        run = self._state.tables.runs[run_id].run
        if run.status is RunStatus.INTERRUPTED and not run.attached:
            self._state.change_run(run_id, status=RunStatus.QUEUED, next_action=None)
            self._state.start_clock(run_id)
            self._state.write(run_id, EventDraft(kind=EventKind.RUN_QUEUED))


class MemoryEvents:
    """`contracts.ports.Events` in memory."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def later(self, owner: Owner, events: Sequence[EventDraft]) -> None:
        await self.append(owner, events)

    async def stage(self, owner: Owner, task_id: str, events: Sequence[EventDraft]) -> None:
        await self.append(owner, events)

    async def append(self, owner: Owner, events: Sequence[EventDraft]) -> None:
        with self._state.commit():
            self._state.hold(owner)
            self._state.write(owner.run_id, *events)

    async def read(self, tenant_id: TenantId, run_id: RunId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        log = self._state.tables.events.get(run_id, ())
        return page([event for event in log if event.tenant_id == tenant_id], after=after, limit=limit)

    async def latest(self, tenant_id: TenantId, run_id: RunId, kind: EventKind) -> Event | None:
        log = reversed(self._state.tables.events.get(run_id, ()))
        return next((event for event in log if event.tenant_id == tenant_id and event.kind is kind), None)

    async def links(self, tenant_id: TenantId, run_id: RunId, *, after: int = 0, limit: int = 1000) -> Sequence[Link]:
        tables = self._state.tables
        if run_id not in tables.runs or tables.runs[run_id].run.tenant.tenant_id != tenant_id:
            return ()
        return page(tables.links.get(run_id, ()), after=after, limit=limit)

    async def head(self, tenant_id: TenantId, run_id: RunId) -> Head | None:
        links = await self.links(tenant_id, run_id)
        if not links:
            return None
        last = links[-1]
        anchor = self._state.tables.anchors.get(run_id)
        return Head(
            seq=last.seq,
            hash=last.hash,
            anchor_seq=anchor.seq if anchor else 0,
            anchor_hash=anchor.hash if anchor else GENESIS,
            newest=last.seq,
        )

    async def logs(self, tenant_id: TenantId, *, after: RunId | None = None, limit: int = 1000) -> Sequence[RunId]:
        rows = self._state.tables.runs.values()
        ids = sorted(row.run.run_id for row in rows if row.run.tenant.tenant_id == tenant_id)
        return [run_id for run_id in ids if after is None or run_id > after][: max(limit, 0)]


class MemoryTenants:
    """`contracts.ports.Tenants` in memory."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def put(self, tenant: Tenant) -> None:
        with self._state.commit() as tables:
            known = tables.tenants.get(tenant.tenant_id)
            budget_id = BudgetId(self._state.ids.new()) if known is None else known[1]
            limits = (tenant.budget or _UNLIMITED).model_copy(update={"deadline_seconds": None, "max_steps": None})
            before = tables.budgets.get(budget_id)
            budget = before or BudgetRow(budget_id=budget_id, tenant_id=tenant.tenant_id, kind="tenant", limits=limits)
            tables.tenants[tenant.tenant_id] = (tenant, budget_id)
            tables.budgets[budget_id] = replace(budget, limits=limits)

    async def get(self, tenant_id: TenantId) -> Tenant:
        try:
            return self._state.tables.tenants[tenant_id][0]
        except KeyError:
            raise NotFound(f"there is no tenant {tenant_id!r}") from None

    async def names(self, *, principal: Principal) -> Sequence[TenantId]:
        return sorted(name for name in self._state.tables.tenants if principal.may_act_for(name))
