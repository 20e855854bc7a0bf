"""The journal and the ledger in memory."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

from holdfast.contracts.calls import (
    CallIntent,
    CallOutcome,
    CallRecord,
    Fresh,
    Opened,
    OutcomeStatus,
    Recorded,
    Unknown,
    opened_now,
)
from holdfast.contracts.errors import Conflict, ErrorType, NotFound
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import ApprovalId, BudgetId, CallId, RunId, TenantId, ThreadId
from holdfast.contracts.limits import BudgetState, Limits, Usage
from holdfast.contracts.runs import Owner
from holdfast.policies.refusal import GRANTING, grant_refusal, refusal
from holdfast.policies.replay import counts_as_no_outcome, require_recorded
from holdfast.testing.memory_state import BudgetRow, CallRow, MemoryState, as_stored


class MemoryJournal:
    """`contracts.ports.Journal` in memory."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def open(self, owner: Owner, intent: CallIntent, *, event: EventDraft) -> Opened:
        with self._state.commit() as tables:
            self._state.hold(owner)
            known = tables.keys.get((owner.thread_id, intent.identity.key))
            row = None if known is None else tables.calls[known]
            if row is not None:
                require_recorded(row.record)
            if row is not None and _is_this_one(row, owner, intent):
                return Fresh(row.record)
            if row is not None and not counts_as_no_outcome(row.record, for_run=owner.run_id):
                answered = row.record.status in {"returned", "failed"}
                return Recorded(row.record) if answered else Unknown(row.record)
            record = self._new(owner, intent) if row is None else self._again(owner, row, intent)
            used = self._use_grant(owner, intent, row)
            _reserve(self._state, owner.tenant_id, intent.budgets, intent.reservation)
            tables.calls[record.call_id] = CallRow(
                record=record,
                thread_id=owner.thread_id,
                budgets=intent.budgets,
                grant=intent.grant or (row.grant if row else None),
                epoch=owner.epoch,
            )
            tables.keys[owner.thread_id, intent.identity.key] = record.call_id
            self._state.write(owner.run_id, *used, replace(event, call_id=record.call_id))
            return Fresh(record)

    async def resend(self, owner: Owner, call_id: CallId, *, reservation: Usage, event: EventDraft) -> CallRecord:
        with self._state.commit() as tables:
            self._state.hold(owner)
            row = self._row(owner, call_id)
            if row.record.status not in {"open", "unknown"}:
                raise Conflict(f"call {call_id} has an outcome ({row.record.status}); it is not sent again")
            last, own = BudgetId(row.record.last_run_id), BudgetId(owner.run_id)
            paying = tuple(own if budget == last else budget for budget in row.budgets)
            _settle(self._state, row.budgets, reserved=row.record.reservation, used=row.record.reservation)
            _reserve(self._state, owner.tenant_id, paying, reservation)
            record = replace(
                row.record,
                last_run_id=owner.run_id,
                status="open",
                reservation=reservation,
                usage=row.record.usage + row.record.reservation,
                error_type=None,
                error_message=None,
                error_facts={},
                sends=row.record.sends + 1,
            )
            tables.calls[call_id] = replace(row, record=record, budgets=paying, epoch=owner.epoch)
            self._state.write(owner.run_id, replace(event, call_id=call_id))
            return record

    async def close(self, owner: Owner, outcome: CallOutcome, *, event: EventDraft) -> CallRecord:
        with self._state.commit() as tables:
            self._state.hold(owner)
            row = self._row(owner, outcome.call_id)
            if row.record.status not in {"open", "unknown"} or row.record.status == outcome.status:
                return row.record
            unknown = outcome.status is OutcomeStatus.UNKNOWN
            record = replace(
                row.record,
                status=outcome.status.value,
                usage=row.record.usage if unknown else row.record.usage + outcome.usage,
                response=None if outcome.response is None else as_stored(outcome.response),
                error_type=outcome.error_type,
                error_message=outcome.error_message,
                error_facts=as_stored(outcome.error_facts),
                latency_ms=outcome.latency_ms,
                closed_at=None if unknown else self._state.now(),
            )
            tables.calls[outcome.call_id] = replace(row, record=record)
            if not unknown:
                _settle(self._state, row.budgets, reserved=row.record.reservation, used=outcome.usage)
            self._state.write(owner.run_id, replace(event, call_id=outcome.call_id))
            return record

    async def find(self, tenant_id: TenantId, thread_id: ThreadId, key: str) -> CallRecord | None:
        call_id = self._state.tables.keys.get((thread_id, key))
        record = None if call_id is None else self._state.tables.calls[call_id].record
        return record if record is not None and record.tenant_id == tenant_id else None

    async def of_task(self, tenant_id: TenantId, thread_id: ThreadId, task_id: str) -> Mapping[str, CallRecord]:
        records = (row.record for row in self._state.tables.calls.values() if row.thread_id == thread_id)
        return {
            record.identity.key: record
            for record in records
            if record.identity.site.task_id == task_id and record.tenant_id == tenant_id
        }

    async def of_run(self, tenant_id: TenantId, run_id: RunId) -> Sequence[CallRecord]:
        records = (row.record for row in self._state.tables.calls.values())
        return [
            record
            for record in records
            if run_id in {record.run_id, record.last_run_id} and record.tenant_id == tenant_id
        ]

    def _row(self, owner: Owner, call_id: CallId) -> CallRow:
        row = self._state.tables.calls.get(call_id)
        if row is None or row.thread_id != owner.thread_id:
            raise NotFound(f"the thread of run {owner.run_id} has no call {call_id}")
        return row

    def _new(self, owner: Owner, intent: CallIntent) -> CallRecord:
        request, now = as_stored(intent.request), self._state.now()
        return opened_now(intent, tenant_id=owner.tenant_id, run_id=owner.run_id, request=request, opened_at=now)

    def _again(self, owner: Owner, row: CallRow, intent: CallIntent) -> CallRecord:
        return replace(
            row.record,
            last_run_id=owner.run_id,
            status="open",
            reservation=intent.reservation,
            response=None,
            error_type=None,
            error_message=None,
            error_facts={},
            sends=row.record.sends + 1,
            latency_ms=None,
            closed_at=None,
        )

    def _use_grant(self, owner: Owner, intent: CallIntent, row: CallRow | None) -> tuple[EventDraft, ...]:
        """Use up the intent's grant; a call that is opened again has used its own already."""
        if intent.grant is None or (row is not None and row.grant == intent.grant):
            return ()
        approval = self._state.tables.approvals.get(intent.grant)
        if approval is None or approval.thread_id != owner.thread_id:
            raise grant_refusal(intent.grant, intent.identity.name, status=None, same_call=False, used=False)
        same_call, used = approval.identity_key == intent.identity.key, approval.used_at is not None
        if used or not same_call or approval.status not in GRANTING or approval.expires_at <= self._state.now():
            raise grant_refusal(
                approval.id, intent.identity.name, status=approval.status, same_call=same_call, used=used
            )
        self._state.tables.approvals[approval.id] = approval.model_copy(update={"used_at": self._state.now()})
        call_id = intent.call_id if row is None else row.record.call_id
        return (_grant_used(intent, call_id, approval.id),)


class MemoryLedger:
    """`contracts.ports.Ledger` in memory."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def open_share(
        self, owner: Owner, *, parent: BudgetId, share_key: str, limits: Limits, event: EventDraft
    ) -> BudgetId:
        with self._state.commit() as tables:
            self._state.hold(owner)
            if (known := tables.shares.get((owner.thread_id, share_key))) is not None:
                return known
            self._budget(owner.tenant_id, parent)
            budget_id = BudgetId(self._state.ids.new())
            tables.budgets[budget_id] = BudgetRow(
                budget_id=budget_id,
                tenant_id=owner.tenant_id,
                kind="specialist",
                limits=limits.model_copy(update={"deadline_seconds": None}),
            )
            tables.shares[owner.thread_id, share_key] = budget_id
            self._state.write(owner.run_id, event)
            return budget_id

    async def state(self, tenant_id: TenantId, budget_id: BudgetId) -> BudgetState:
        row = self._budget(tenant_id, budget_id)
        spent = row.spent.model_copy(update={"cost_usd": None}) if row.unpriced else row.spent
        return BudgetState(limits=row.limits, spent=spent, reserved=row.reserved)

    async def tenant_budget(self, tenant_id: TenantId) -> BudgetId:
        try:
            return self._state.tables.tenants[tenant_id][1]
        except KeyError:
            raise NotFound(f"there is no tenant {tenant_id!r}") from None

    def _budget(self, tenant_id: TenantId, budget_id: BudgetId) -> BudgetRow:
        row = self._state.tables.budgets.get(budget_id)
        if row is None or row.tenant_id != tenant_id:
            raise NotFound(f"tenant {tenant_id!r} has no budget {budget_id}")
        return row


def give_up(state: MemoryState, row: CallRow, *, failed: bool) -> None:
    """Close a call that its run leaves without an outcome: as failed and spent in full, or as unknown."""
    record = row.record
    if failed:
        _settle(state, row.budgets, reserved=record.reservation, used=record.reservation)
        usage, error, at = record.usage + record.reservation, ErrorType.TRANSIENT_DEPENDENCY, state.now()
        record = replace(record, status="failed", usage=usage, error_type=error, closed_at=at)
    else:
        record = replace(record, status="unknown")
    state.tables.calls[record.call_id] = replace(row, record=record)


def _is_this_one(row: CallRow, owner: Owner, intent: CallIntent) -> bool:
    return (row.record.call_id, row.record.status, row.epoch) == (intent.call_id, "open", owner.epoch)


def _grant_used(intent: CallIntent, call_id: CallId, approval_id: ApprovalId) -> EventDraft:
    return EventDraft(
        kind=EventKind.APPROVAL_USED,
        node=intent.identity.site.node,
        task_id=intent.identity.site.task_id,
        call_id=call_id,
        payload={"approval_id": approval_id, "name": intent.identity.name},
    )


def _reserve(state: MemoryState, tenant_id: TenantId, path: Iterable[BudgetId], wanted: Usage) -> None:
    """Reserve on every budget of the path, or on none."""
    rows = []
    for budget_id in path:
        row = state.tables.budgets.get(budget_id)
        if row is None or row.tenant_id != tenant_id:
            raise NotFound(f"tenant {tenant_id!r} has no budget {budget_id}")
        rows.append(row)
    for row in rows:
        refused = refusal(
            row.budget_id, row.kind, limits=row.limits, spent=row.spent, reserved=row.reserved, requested=wanted
        )
        if refused is not None:
            raise refused
    for row in rows:
        state.tables.budgets[row.budget_id] = replace(row, reserved=row.reserved + _priced(wanted))


def _settle(state: MemoryState, path: Iterable[BudgetId], *, reserved: Usage, used: Usage) -> None:
    """Release what a call reserved and count what it used, on every budget of the path."""
    for budget_id in path:
        row = state.tables.budgets[budget_id]
        state.tables.budgets[budget_id] = replace(
            row,
            reserved=_less(row.reserved, _priced(reserved)),
            spent=row.spent + _priced(used),
            unpriced=row.unpriced + (used.cost_usd is None),
        )


def _priced(usage: Usage) -> Usage:
    return usage if usage.cost_usd is not None else usage.model_copy(update={"cost_usd": Decimal(0)})


def _less(whole: Usage, part: Usage) -> Usage:
    return Usage(
        model_calls=whole.model_calls - part.model_calls,
        tool_calls=whole.tool_calls - part.tool_calls,
        tokens_used=whole.tokens_used - part.tokens_used,
        cost_usd=(whole.cost_usd or Decimal(0)) - (part.cost_usd or Decimal(0)),
        steps=whole.steps - part.steps,
    )
