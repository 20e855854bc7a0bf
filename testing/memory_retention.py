"""Pruning and holds of the in-memory store. It has no checkpoints: those are LangGraph's, and not a port of ours."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from holdfast.contracts.approvals import Approval
from holdfast.contracts.calls import CallRecord
from holdfast.contracts.errors import Conflict, NotFound
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import ApprovalId, CallId, RunId, TenantId
from holdfast.contracts.retention import LegalHold, Pruned
from holdfast.contracts.runs import Run
from holdfast.contracts.tenancy import Principal
from holdfast.policies.retention import without_words
from holdfast.testing.memory_state import MemoryState, RunRow

_ENDS = {EventKind.RUN_COMPLETED, EventKind.RUN_FAILED, EventKind.RUN_CANCELLED}


class MemoryRetention:
    """`contracts.ports.Retention` in memory."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def hold(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, reason: str) -> Run:
        with self._state.commit():
            held = self._run(principal, tenant_id, run_id).run.legal_hold
            if held is not None:
                raise Conflict(f"run {run_id} is held already, by {held.by!r}: {held.reason}")
            hold = LegalHold(by=principal.user_id, reason=reason, since=self._state.now())
            row = self._state.change_run(run_id, legal_hold=hold)
            self._note(run_id, EventKind.RUN_HELD, by=principal.user_id, reason=reason)
            return self._state.run_of(row)

    async def lift(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, reason: str) -> Run:
        with self._state.commit():
            if self._run(principal, tenant_id, run_id).run.legal_hold is None:
                raise Conflict(f"run {run_id} is not held, so there is no hold to lift")
            row = self._state.change_run(run_id, legal_hold=None)
            self._note(run_id, EventKind.RUN_HOLD_LIFTED, by=principal.user_id, reason=reason)
            return self._state.run_of(row)

    async def prune(self, tenant_id: TenantId, *, at_most: int = 10_000) -> Sequence[Pruned]:
        tenant, _ = self._state.tables.tenants[tenant_id]
        if tenant.legal_hold:
            return ()
        terms = tenant.retention
        with self._state.commit():
            return [
                *self._prune_events(tenant_id, terms.events_days, at_most),
                *self._prune_contents(tenant_id, terms.contents_days, at_most),
            ]

    def _prune_events(self, tenant_id: TenantId, days: int | None, at_most: int) -> Sequence[Pruned]:
        pruned = []
        for run in self._ended_before(tenant_id, days):
            due = run.legal_hold is None and run.run_id not in self._state.tables.pruned
            if due and at_most > 0 and (gone := self._take_out(run.run_id, at_most, days)):
                pruned.append(Pruned(run_id=run.run_id, events=gone))
                at_most -= gone
        return pruned

    def _prune_contents(self, tenant_id: TenantId, days: int | None, at_most: int) -> Sequence[Pruned]:
        pruned: list[Pruned] = []
        for run in [run for run in self._ended_before(tenant_id, days) if self._may_lose_its_contents(run)]:
            if sum(one.contents for one in pruned) < at_most:
                gone = self._take_contents(run)
                self._note(run.run_id, EventKind.RUN_PRUNED, contents=gone, days=days)
                pruned.append(Pruned(run_id=run.run_id, contents=gone))
        return pruned

    def _may_lose_its_contents(self, run: Run) -> bool:
        tables = self._state.tables
        runs = [row.run for row in tables.runs.values()]
        on_thread = [each for each in runs if each.thread_id == run.thread_id]
        needed = [each for each in runs if each.resumed_from == run.run_id and each.contents_pruned_at is None]
        return (
            run.contents_pruned_at is None
            and all(each.finished_at is not None and each.legal_hold is None for each in on_thread)
            and not needed
            and all(record.status in {"returned", "failed"} for record in self._calls_of(run).values())
            and all(approval.status != "pending" for approval in self._asked_by(run).values())
        )

    def _take_contents(self, run: Run) -> int:
        """Take them, and return of how many rows."""
        tables, now = self._state.tables, self._state.now()
        calls, asked = self._calls_of(run), self._asked_by(run)
        for call_id, record in calls.items():
            left = replace(
                record, request={}, response=None, error_message=None, error_facts={}, contents_pruned_at=now
            )
            tables.calls[call_id] = replace(tables.calls[call_id], record=left)
        nothing = {"payload": None, "args": None, "decision": None, "contents_pruned_at": now}
        for approval_id, approval in asked.items():
            tables.approvals[approval_id] = approval.model_copy(update=nothing)
        cause = without_words(run.cause)
        self._state.change_run(run.run_id, input=b"", context=None, output=None, cause=cause, contents_pruned_at=now)
        return 1 + len(calls) + len(asked)

    def _calls_of(self, run: Run) -> Mapping[CallId, CallRecord]:
        """The calls that the run was the last to send."""
        calls = self._state.tables.calls
        return {key: row.record for key, row in calls.items() if row.record.last_run_id == run.run_id}

    def _asked_by(self, run: Run) -> Mapping[ApprovalId, Approval]:
        approvals = self._state.tables.approvals
        return {key: approval for key, approval in approvals.items() if approval.run_id == run.run_id}

    def _ended_before(self, tenant_id: TenantId, days: int | None) -> Sequence[Run]:
        """The tenant's runs that ended so many days ago, the longest ago first; None: none has."""
        if days is None:
            return ()
        limit = self._state.now() - timedelta(days=days)
        runs = [row.run for row in self._state.tables.runs.values() if row.run.tenant.tenant_id == tenant_id]
        ended = sorted((run.finished_at, run.run_id, run) for run in runs if run.finished_at is not None)
        return [run for at, _, run in ended if at <= limit]

    def _take_out(self, run_id: RunId, at_most: int, days: int | None) -> int:
        tables = self._state.tables
        log, links = tables.events[run_id], tables.links[run_id]
        going = next(place for place, event in enumerate(log) if event.kind in _ENDS)
        gone = min(going, at_most)
        tables.anchors[run_id] = links[gone - 1]
        tables.events[run_id], tables.links[run_id] = log[gone:], links[gone:]
        if gone == going:
            tables.pruned[run_id] = True
        self._note(run_id, EventKind.RUN_PRUNED, days=days, events=tables.anchors[run_id].seq)
        return gone

    def _run(self, principal: Principal, tenant_id: TenantId, run_id: RunId) -> RunRow:
        if not principal.may_act_for(tenant_id):
            raise NotFound(f"tenant {tenant_id!r} has no run {run_id}")
        return self._state.run_row(tenant_id, run_id)

    def _note(self, run_id: RunId, kind: EventKind, **facts: object) -> None:
        self._state.write(run_id, EventDraft(kind=kind, payload=facts))
