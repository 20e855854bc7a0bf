"""Runs, their threads and their leases in memory."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from holdfast.contracts.approvals import ApprovalStatus
from holdfast.contracts.errors import (
    AdmissionRefused,
    Conflict,
    InvalidRequest,
    NotFound,
    RunCancelled,
    RuntimeErrorRecord,
)
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import BudgetId, RunId, TenantId, ThreadId
from holdfast.contracts.limits import Usage
from holdfast.contracts.ports import Renewal
from holdfast.contracts.runs import Forked, GraphVersion, Owner, Resumed, Run, RunClaim, RunRequest, RunStatus
from holdfast.contracts.tenancy import Principal, Tenant
from holdfast.contracts.tools import Effect
from holdfast.policies.refusal import refusal
from holdfast.policies.retention import NO_FORK, NO_RESUME, require_contents
from holdfast.policies.travel import require_resumable
from holdfast.testing.memory_calls import give_up
from holdfast.testing.memory_state import BudgetRow, Lease, MemoryState, RunRow

_OPEN = frozenset({RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.INTERRUPTED})
_RETRY_AFTER_SECONDS = 1.0


class MemoryRuns:
    """`contracts.ports.Runs` in memory."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def admit(self, request: RunRequest) -> Run:
        with self._state.commit() as tables:
            if (known := tables.runs.get(request.run_id)) is not None:
                return self._admitted_before(known, request)
            if request.tenant.tenant_id not in tables.tenants:
                raise NotFound(f"there is no tenant {request.tenant.tenant_id!r}")
            self._require_room(tables.tenants[request.tenant.tenant_id][0], request)
            self._require_origin(request)
            row = self._new(request)
            tables.runs[request.run_id] = row
            budget_id = BudgetId(request.run_id)
            tables.budgets[budget_id] = self._budget(request)
            admitted = EventDraft(
                kind=EventKind.RUN_ADMITTED,
                payload={"graph": request.graph_name, "graph_version": request.graph_version},
            )
            crossing = _crossing(request)
            self._state.write(request.run_id, admitted, *crossing)
            if request.origin is not None:
                self._state.write(request.origin.run_id, *crossing)
            return self._state.run_of(row)

    async def get(self, tenant_id: TenantId, run_id: RunId) -> Run:
        return self._state.run_of(self._state.run_row(tenant_id, run_id))

    async def find(
        self,
        tenant_id: TenantId,
        *,
        thread_key: str | None = None,
        status: RunStatus | None = None,
        limit: int = 100,
    ) -> Sequence[Run]:
        found = [
            self._state.run_of(row)
            for row in reversed(self._state.tables.runs.values())
            if row.run.tenant.tenant_id == tenant_id
            and thread_key in {None, row.run.thread_key}
            and status in {None, row.run.status}
        ]
        return found[:limit]

    async def statuses(self, tenant_id: TenantId, run_ids: Sequence[RunId]) -> Mapping[RunId, RunStatus]:
        rows = (row.run for row in self._state.tables.runs.values() if row.run.tenant.tenant_id == tenant_id)
        return {run.run_id: run.status for run in rows if run.run_id in run_ids}

    async def thread_id(self, tenant_id: TenantId, thread_key: str) -> ThreadId:
        try:
            return self._state.tables.threads[tenant_id, thread_key]
        except KeyError:
            raise NotFound(f"tenant {tenant_id!r} has no thread {thread_key!r}") from None

    async def request_cancel(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, reason: str) -> Run:
        if not principal.may_act_for(tenant_id):
            raise NotFound(f"tenant {tenant_id!r} has no run {run_id}")
        with self._state.commit():
            row = self._state.run_row(tenant_id, run_id)
            run = row.run
            if run.status.final:
                raise Conflict(
                    f"run {run_id} is {run.status} already; nothing reopens it, and nothing is left to cancel"
                )
            asked = RunCancelled(f"cancelled by {principal.user_id!r}: {reason}", by=principal.user_id, reason=reason)
            cause = asked.record(run_id=run_id, step_name="request_cancel")
            if row.asked_to_stop is None:
                self._state.write(run_id, EventDraft(kind=EventKind.RUN_CANCEL_REQUESTED, payload=asked.facts))
                self._state.tables.runs[run_id] = replace(row, asked_to_stop=cause)
                self._state.change_run(run_id, cancel_requested=True)
            if run.status is not RunStatus.RUNNING:
                self._end(run_id, RunStatus.CANCELLED, cause=cause)
                self._state.write(run_id, EventDraft(kind=EventKind.RUN_CANCELLED, payload=asked.facts))
            return self._state.run_of(self._state.tables.runs[run_id])

    async def reattach(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, served_by: str) -> Run:
        if not principal.may_act_for(tenant_id):
            raise NotFound(f"tenant {tenant_id!r} has no run {run_id}")
        with self._state.commit():
            run = self._state.run_row(tenant_id, run_id).run
            if not run.attached or run.status is not RunStatus.INTERRUPTED:
                raise Conflict(f"run {run_id} is {run.status}; only an attached run that rests goes on in its host")
            epoch, attempt = run.epoch + 1, run.attempt + 1
            self._state.change_run(run_id, status=RunStatus.RUNNING, epoch=epoch, attempt=attempt, next_action=None)
            self._state.start_clock(run_id)
            facts = {"epoch": epoch, "attempt": attempt, "graph_version": served_by}
            self._state.write(run_id, EventDraft(kind=EventKind.RUN_CLAIMED, payload=facts))
            return self._state.run_of(self._state.tables.runs[run_id])

    async def begin_step(self, owner: Owner, *, node: str, task_id: str, event: EventDraft) -> bool:
        with self._state.commit() as tables:
            row = self._state.hold(owner)
            started = (e for e in tables.events[owner.run_id] if e.kind is EventKind.NODE_STARTED)
            if not any(e.task_id == task_id for e in started):
                self._count_step(BudgetId(owner.run_id))
            self._state.write(owner.run_id, event)
            return row.run.cancel_requested

    async def rest(self, owner: Owner, *, next_action: str, event: EventDraft) -> RunStatus:
        with self._state.commit() as tables:
            row = self._state.hold(owner)
            tables.leases.pop(owner.run_id, None)
            self._state.write(owner.run_id, event)
            answered = self._state.answers(owner.run_id) > row.answers_seen
            if (answered or row.run.cancel_requested) and not owner.attached:
                self._state.change_run(owner.run_id, status=RunStatus.QUEUED, next_action=None, parked=True)
                return RunStatus.QUEUED
            self._state.change_run(owner.run_id, status=RunStatus.INTERRUPTED, next_action=next_action, parked=True)
            self._state.stop_clock(owner.run_id)
            return RunStatus.INTERRUPTED

    async def finish(
        self,
        owner: Owner,
        status: RunStatus,
        *,
        output: Any,
        cause: RuntimeErrorRecord | None,
        event: EventDraft,
    ) -> None:
        if not status.final:
            raise InvalidRequest(f"a run does not end as {status}; use rest or release")
        with self._state.commit():
            ended = self._state.run_row(owner.tenant_id, owner.run_id).run
            if ended.status.final and ended.epoch == owner.epoch:
                if ended.status is status:
                    return
                raise Conflict(f"run {owner.run_id} ended as {ended.status}, so it cannot end as {status}")
            asked = self._state.hold(owner).asked_to_stop
            if status is RunStatus.CANCELLED and asked is not None:
                cause = asked
            self._end(owner.run_id, status, cause=cause, output=output)
            self._state.write(owner.run_id, event)

    async def release(self, owner: Owner, *, event: EventDraft) -> None:
        with self._state.commit() as tables:
            self._state.hold(owner)
            tables.leases.pop(owner.run_id, None)
            self._state.change_run(owner.run_id, status=RunStatus.QUEUED, parked=False)
            self._state.write(owner.run_id, event)

    def _admitted_before(self, known: RunRow, request: RunRequest) -> Run:
        if known.request_digest != request.digest:
            raise Conflict(f"run {request.run_id} was admitted before with another request; take a new run id")
        return self._state.run_of(known)

    def _require_room(self, tenant: Tenant, request: RunRequest) -> None:
        waiting = sum(
            row.run.status is RunStatus.QUEUED and row.run.tenant.tenant_id == tenant.tenant_id
            for row in self._state.tables.runs.values()
        )
        if not request.attached and waiting >= tenant.max_queued:
            raise AdmissionRefused(
                f"tenant {tenant.tenant_id!r} has {waiting} runs in the queue, its most is {tenant.max_queued}; "
                f"come back in {_RETRY_AFTER_SECONDS} s",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )

    def _require_origin(self, request: RunRequest) -> None:
        """That what the run goes on from is there and admits it. Checkpoints are not kept here, and not looked for."""
        tenant_id, tables = request.tenant.tenant_id, self._state.tables
        match request.origin:
            case Forked(run_id=origin, salt=salt):
                run = self._state.run_row(tenant_id, origin).run
                require_contents(origin, run.contents_pruned_at, NO_FORK)
                if (tenant_id, request.thread_key) in tables.threads:
                    raise Conflict(f"there is a thread {request.thread_key!r} already; a fork needs a new one")
                tables.threads[tenant_id, request.thread_key] = thread_id = ThreadId(self._state.ids.new())
                tables.salts[thread_id] = salt
            case Resumed(run_id=origin):
                run = self._state.run_row(tenant_id, origin).run
                on_thread = [row.run.run_id for row in tables.runs.values() if row.run.thread_id == run.thread_id]
                later = on_thread[on_thread.index(origin) + 1 :]
                followed_by = later[0] if later else None
                require_resumable(origin, run.status, attached=run.attached, followed_by=followed_by)
                require_contents(origin, run.contents_pruned_at, NO_RESUME)

    def _budget(self, request: RunRequest) -> BudgetRow:
        row = BudgetRow(
            budget_id=BudgetId(request.run_id),
            tenant_id=request.tenant.tenant_id,
            kind="run",
            limits=request.limits.model_copy(update={"deadline_seconds": None}),
        )
        if not isinstance(request.origin, Resumed):
            return row
        before = self._state.tables.budgets[BudgetId(request.origin.run_id)]
        return replace(row, spent=before.spent + before.reserved, unpriced=before.unpriced)

    def _new(self, request: RunRequest) -> RunRow:
        spot = (request.tenant.tenant_id, request.thread_key)
        thread_id = self._state.tables.threads.setdefault(spot, ThreadId(self._state.ids.new()))
        seconds, now, origin = request.working_seconds, self._state.now(), request.origin
        run = Run(
            run_id=request.run_id,
            thread_id=thread_id,
            thread_key=request.thread_key,
            tenant=request.tenant,
            graph_name=request.graph_name,
            graph_version=request.graph_version,
            status=RunStatus.RUNNING if request.attached else RunStatus.QUEUED,
            input=request.input,
            input_type=request.input_type,
            context=request.context,
            limits=request.limits,
            remaining_seconds=seconds,
            epoch=1 if request.attached else 0,
            attempt=1 if request.attached else 0,
            takeovers=0,
            parked=False,
            max_attempts=request.max_attempts,
            output=None,
            next_action=None,
            cause=None,
            cancel_requested=False,
            worker_id=None,
            trace_parent=request.trace_parent,
            attached=request.attached,
            forked_from=origin.run_id if isinstance(origin, Forked) else None,
            forked_at=origin.checkpoint_id if isinstance(origin, Forked) else None,
            resumed_from=origin.run_id if isinstance(origin, Resumed) else None,
            fork=self._state.tables.salts.get(thread_id, ""),
            legal_hold=None,
            contents_pruned_at=None,
            created_at=now,
            started_at=now if request.attached else None,
            finished_at=None,
        )
        deadline = None if seconds is None else self._state.clock.monotonic() + seconds
        return RunRow(run=run, request_digest=request.digest, deadline_at=deadline)

    def _count_step(self, budget_id: BudgetId) -> None:
        row = self._state.tables.budgets[budget_id]
        step = Usage(steps=1)
        refused = refusal(
            budget_id, row.kind, limits=row.limits, spent=row.spent, reserved=row.reserved, requested=step
        )
        if refused is not None and refused.facts["limit_name"] == "max_steps":
            raise refused
        self._state.tables.budgets[budget_id] = replace(row, spent=row.spent + step)

    def _close_left_open(self, run_id: RunId) -> None:
        """The last word on the calls that a run leaves without an outcome, whichever of its attempts made them."""
        for row in list(self._state.tables.calls.values()):
            record = row.record
            only_reads = record.effect is Effect.READ
            left = record.status == "open" or (record.status == "unknown" and only_reads)
            if record.last_run_id == run_id and left:
                give_up(self._state, row, failed=only_reads)
                kind = EventKind(f"{record.identity.kind}.failed") if only_reads else EventKind.CALL_UNKNOWN
                told = EventDraft(
                    kind=kind,
                    node=record.identity.site.node,
                    task_id=record.identity.site.task_id,
                    call_id=record.call_id,
                    payload={"name": record.identity.name, "reason": "the run ended before it was known"},
                )
                self._state.write(run_id, told)

    def _end(self, run_id: RunId, status: RunStatus, *, cause: RuntimeErrorRecord | None, output: Any = None) -> None:
        """End a run: release its lease, stop its clock, close what is open and withdraw what is still asked."""
        tables = self._state.tables
        tables.leases.pop(run_id, None)
        self._close_left_open(run_id)
        self._state.change_run(
            run_id, status=status, cause=cause, output=output, next_action=None, finished_at=self._state.now()
        )
        self._state.stop_clock(run_id)
        for approval in list(tables.approvals.values()):
            if approval.run_id == run_id and approval.status is ApprovalStatus.PENDING:
                withdrawn = approval.model_copy(
                    update={"status": ApprovalStatus.WITHDRAWN, "decided_at": self._state.now()}
                )
                tables.approvals[approval.id] = withdrawn
                self._state.write(
                    run_id, EventDraft(kind=EventKind.APPROVAL_WITHDRAWN, payload={"approval_id": approval.id})
                )


def _crossing(request: RunRequest) -> tuple[EventDraft, ...]:
    """What both logs are told of a run that goes on from another."""
    match request.origin:
        case Forked(run_id=origin, checkpoint_id=checkpoint_id, by=by):
            facts = {"from": origin, "to": request.run_id, "checkpoint_id": checkpoint_id, "by": by}
            return (EventDraft(kind=EventKind.RUN_FORKED, payload=facts | {"thread": request.thread_key}),)
        case Resumed(run_id=origin, by=by):
            return (EventDraft(kind=EventKind.RUN_RESUMED, payload={"from": origin, "to": request.run_id, "by": by}),)
        case None:
            return ()


class MemoryLeases:
    """`contracts.ports.Leases` in memory, by the store's clock."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def claim(
        self,
        worker_id: str,
        *,
        tenants: Sequence[TenantId] | None,
        graphs: Mapping[GraphVersion, str],
        slots: int,
        ttl_seconds: float,
    ) -> Sequence[RunClaim]:
        with self._state.commit():
            wanted = [
                row.run
                for row in self._heads_of_threads()
                if (row.run.graph_name, row.run.graph_version) in graphs
                and (tenants is None or row.run.tenant.tenant_id in tenants)
            ]
            served_by = [graphs[GraphVersion(run.graph_name, run.graph_version)] for run in wanted[:slots]]
            return [self._take(worker_id, run, by, ttl_seconds) for run, by in zip(wanted, served_by, strict=False)]

    async def disown(self, worker_id: str, *, held: Collection[RunId]) -> None:
        leases, now = self._state.tables.leases, self._state.clock.monotonic()
        for run_id, lease in list(leases.items()):
            if lease.worker_id == worker_id and run_id not in held:
                leases[run_id] = replace(lease, expires_at=min(lease.expires_at, now))

    async def seconds_to_next_expiry(self) -> float | None:
        now = self._state.clock.monotonic()
        ahead = [lease.expires_at - now for lease in self._state.tables.leases.values() if lease.expires_at > now]
        return min(ahead, default=None)

    def _heads_of_threads(self) -> Iterator[RunRow]:
        """The first open run of each thread, where it waits or its lease has run out."""
        seen: set[ThreadId] = set()
        for row in self._state.tables.runs.values():
            if row.run.attached or row.run.status not in _OPEN or row.run.thread_id in seen:
                continue
            seen.add(row.run.thread_id)
            if row.run.status is RunStatus.QUEUED or (row.run.status is RunStatus.RUNNING and self._is_free(row.run)):
                yield row

    def _is_free(self, run: Run) -> bool:
        lease = self._state.tables.leases.get(run.run_id)
        return lease is None or lease.expires_at <= self._state.clock.monotonic()

    def _take(self, worker_id: str, run: Run, served_by: str, ttl_seconds: float) -> RunClaim:
        state, epoch = self._state, run.epoch + 1
        state.tables.leases[run.run_id] = Lease(
            worker_id=worker_id, epoch=epoch, expires_at=state.clock.monotonic() + ttl_seconds
        )
        row = state.change_run(
            run.run_id,
            status=RunStatus.RUNNING,
            epoch=epoch,
            attempt=run.attempt + 1,
            parked=run.parked and run.status is RunStatus.QUEUED,
            takeovers=run.takeovers + 1 if run.status is RunStatus.RUNNING else 0,
            started_at=run.started_at or state.now(),
        )
        state.tables.runs[run.run_id] = row = replace(row, answers_seen=state.answers(run.run_id))
        claimed = {"worker_id": worker_id, "epoch": epoch, "attempt": row.run.attempt, "graph_version": served_by}
        state.write(run.run_id, EventDraft(kind=EventKind.RUN_CLAIMED, payload=claimed))
        return RunClaim(
            run_id=run.run_id,
            worker_id=worker_id,
            claimed_until=state.after(ttl_seconds),
            heartbeat_at=state.now(),
            run=state.run_of(row),
            served_by=served_by,
        )


class MemoryHeartbeat:
    """`contracts.ports.Heartbeat` in memory. It has no connection to lose."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def renew(self, worker_id: str, owners: Sequence[Owner], *, ttl_seconds: float) -> Mapping[RunId, Renewal]:
        return {owner.run_id: self._renewed(worker_id, owner, ttl_seconds) for owner in owners}

    async def close(self) -> None:
        return

    def _renewed(self, worker_id: str, owner: Owner, ttl_seconds: float) -> Renewal:
        state = self._state
        lease, row = state.tables.leases.get(owner.run_id), state.tables.runs.get(owner.run_id)
        if row is None or lease is None or (lease.worker_id, lease.epoch) != (worker_id, owner.epoch):
            return Renewal(held=False)
        if lease.expires_at <= state.clock.monotonic():
            return Renewal(held=False)
        state.tables.leases[owner.run_id] = replace(lease, expires_at=state.clock.monotonic() + ttl_seconds)
        return Renewal(held=True, cancel_requested=row.run.cancel_requested)
