"""Pruning and holds of the in-memory store. It has no checkpoints: those are LangGraph's, and not a port of ours."""

from collections.abc import Sequence
from datetime import timedelta

from holdfast.contracts.errors import Conflict, NotFound
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.retention import LegalHold, Pruned
from holdfast.contracts.runs import Run
from holdfast.contracts.tenancy import Principal
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
        days, pruned = tenant.retention.events_days, []
        if days is None or tenant.legal_hold:
            return ()
        with self._state.commit():
            for run_id in self._ended_before(tenant_id, days):
                if at_most > 0 and (gone := self._take_out(run_id, at_most, days)):
                    pruned.append(Pruned(run_id=run_id, events=gone))
                    at_most -= gone
        return pruned

    def _ended_before(self, tenant_id: TenantId, days: int) -> Sequence[RunId]:
        tables, limit = self._state.tables, self._state.now() - timedelta(days=days)
        runs = [row.run for row in tables.runs.values() if row.run.tenant.tenant_id == tenant_id]
        ended = [(run.finished_at, run.run_id) for run in runs if run.finished_at and run.legal_hold is None]
        return [run_id for at, run_id in sorted(ended) if at <= limit and run_id not in tables.pruned]

    def _take_out(self, run_id: RunId, at_most: int, days: int) -> int:
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
