"""The tables of the in-memory store, and its commits."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from holdfast.contracts.approvals import Approval
from holdfast.contracts.calls import CallRecord
from holdfast.contracts.canonical import canonical
from holdfast.contracts.chain import GENESIS, Link, chained
from holdfast.contracts.deadline import Clock
from holdfast.contracts.errors import LeaseLost, NotFound, RuntimeErrorRecord
from holdfast.contracts.events import Event, EventDraft
from holdfast.contracts.ids import ApprovalId, BudgetId, CallId, RunId, TenantId, ThreadId
from holdfast.contracts.limits import Limits, Usage
from holdfast.contracts.ports import Ids
from holdfast.contracts.runs import Owner, Run, RunStatus
from holdfast.contracts.tenancy import Tenant
from holdfast.contracts.workers import LiveWorker

_Item = TypeVar("_Item", Event, Link)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A worker's hold on a run."""

    worker_id: str
    epoch: int
    expires_at: float
    """On the store's monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """A worker that said that it is there."""

    worker: LiveWorker
    expires_at: float
    """On the store's monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run and what the store alone knows of it."""

    run: Run
    request_digest: str
    deadline_at: float | None = None
    """While the clock runs: the instant, on the store's monotonic clock."""
    remaining: float | None = None
    """While it stands still: what was left."""
    answers_seen: int = 0
    """Decisions that had been made when the run was claimed."""
    asked_to_stop: RuntimeErrorRecord | None = None
    """The first wish to cancel the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """A budget. Costs in it are what is known; `unpriced` counts the calls whose price is not."""

    budget_id: BudgetId
    tenant_id: TenantId
    kind: str
    limits: Limits
    spent: Usage = field(default_factory=Usage)
    unpriced: int = 0
    reserved: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRow:
    """A call and what the store alone knows of it."""

    record: CallRecord
    thread_id: ThreadId
    budgets: tuple[BudgetId, ...]
    grant: ApprovalId | None
    epoch: int


@dataclass(slots=True)
class Tables:
    """Everything that is stored. Rows are frozen, so that a shallow copy of the tables is a snapshot."""

    tenants: dict[TenantId, tuple[Tenant, BudgetId]] = field(default_factory=dict)
    threads: dict[tuple[TenantId, str], ThreadId] = field(default_factory=dict)
    salts: dict[ThreadId, str] = field(default_factory=dict)
    runs: dict[RunId, RunRow] = field(default_factory=dict)
    leases: dict[RunId, Lease] = field(default_factory=dict)
    workers: dict[str, Presence] = field(default_factory=dict)
    budgets: dict[BudgetId, BudgetRow] = field(default_factory=dict)
    shares: dict[tuple[ThreadId, str], BudgetId] = field(default_factory=dict)
    calls: dict[CallId, CallRow] = field(default_factory=dict)
    keys: dict[tuple[ThreadId, str], CallId] = field(default_factory=dict)
    approvals: dict[ApprovalId, Approval] = field(default_factory=dict)
    asked: dict[tuple[ThreadId, str], ApprovalId] = field(default_factory=dict)
    events: dict[RunId, tuple[Event, ...]] = field(default_factory=dict)
    links: dict[RunId, tuple[Link, ...]] = field(default_factory=dict)
    anchors: dict[RunId, Link] = field(default_factory=dict)
    """The last link that was pruned of each run."""
    pruned: dict[RunId, bool] = field(default_factory=dict)
    """The runs of which everything was pruned that may be."""

    def snapshot(self) -> "Tables":
        """The tables as they are now."""
        return Tables(**{table.name: dict(getattr(self, table.name)) for table in fields(self)})


class MemoryState:
    """The tables with a clock and ids. A method of a port does not await inside its commit, so commits never meet."""

    def __init__(self, *, clock: Clock, ids: Ids) -> None:
        self.clock = clock
        self.ids = ids
        self.tables = Tables()

    @contextmanager
    def commit(self) -> Iterator[Tables]:
        """All changes of the block, or none when it raises."""
        before = self.tables.snapshot()
        try:
            yield self.tables
        except BaseException:
            self.tables = before
            raise

    def now(self) -> datetime:
        """The wall clock, as the rows' timestamps keep it."""
        return datetime.fromtimestamp(self.clock.now(), tz=UTC)

    def after(self, seconds: float) -> datetime:
        """The wall clock `seconds` from now."""
        return self.now() + timedelta(seconds=seconds)

    def hold(self, owner: Owner) -> RunRow:
        """The fence: the run's row, when `owner` holds it; raises `LeaseLost` otherwise."""
        row = self.tables.runs.get(owner.run_id)
        lease = self.tables.leases.get(owner.run_id)
        ours = row is not None and row.run.tenant.tenant_id == owner.tenant_id and row.run.epoch == owner.epoch
        held = lease is not None and lease.epoch == owner.epoch
        if owner.attached:
            held = row is not None and row.run.attached and row.run.status is RunStatus.RUNNING
        if row is None or not ours or not held:
            raise LeaseLost(
                f"run {owner.run_id} is not held under epoch {owner.epoch} any more; stop, and write nothing for it",
                run_id=owner.run_id,
                epoch=owner.epoch,
            )
        return row

    def write(self, run_id: RunId, *drafts: EventDraft) -> None:
        """Append events to a run's log, and chain them."""
        for draft in drafts:
            log, links = self.tables.events.get(run_id, ()), self.tables.links.get(run_id, ())
            event = self._event(run_id, log[-1].seq + 1 if log else 1, draft)
            self.tables.events[run_id] = (*log, event)
            self.tables.links[run_id] = (*links, _link(event, links[-1].hash if links else GENESIS))

    def _event(self, run_id: RunId, seq: int, draft: EventDraft) -> Event:
        run = self.tables.runs[run_id].run
        _, trace_id, span_id, _ = run.trace_parent.split("-") if run.trace_parent else (None,) * 4
        return Event(
            tenant_id=run.tenant.tenant_id,
            run_id=run_id,
            seq=seq,
            at=self.now(),
            attempt=run.attempt,
            kind=draft.kind,
            node=draft.node,
            task_id=draft.task_id,
            call_id=draft.call_id,
            trace_id=draft.trace_id or trace_id,
            span_id=draft.span_id or span_id,
            payload=as_stored(draft.payload),
        )

    def run_row(self, tenant_id: TenantId, run_id: RunId) -> RunRow:
        """The tenant's run; raises `NotFound`."""
        row = self.tables.runs.get(run_id)
        if row is None or row.run.tenant.tenant_id != tenant_id:
            raise NotFound(f"tenant {tenant_id!r} has no run {run_id}")
        return row

    def run_of(self, row: RunRow) -> Run:
        """The run of a row, as readers see it now."""
        lease = self.tables.leases.get(row.run.run_id)
        remaining = row.remaining
        if row.deadline_at is not None:
            remaining = max(0.0, row.deadline_at - self.clock.monotonic())
        return replace(row.run, remaining_seconds=remaining, worker_id=None if lease is None else lease.worker_id)

    def answers(self, run_id: RunId) -> int:
        """How many of a run's questions are not pending any more."""
        return sum(a.run_id == run_id and a.status != "pending" for a in self.tables.approvals.values())

    def change_run(self, run_id: RunId, **changes: Any) -> RunRow:
        """Change fields of a run."""
        row = self.tables.runs[run_id]
        self.tables.runs[run_id] = changed = replace(row, run=replace(row.run, **changes))
        return changed

    def stop_clock(self, run_id: RunId) -> None:
        """Let a run's deadline stand still, with what is left of it."""
        row = self.tables.runs[run_id]
        if row.deadline_at is not None:
            left = max(0.0, row.deadline_at - self.clock.monotonic())
            self.tables.runs[run_id] = replace(row, deadline_at=None, remaining=left)

    def start_clock(self, run_id: RunId) -> None:
        """Let a run's deadline come nearer again, from what was left."""
        row = self.tables.runs[run_id]
        if row.remaining is not None:
            deadline = self.clock.monotonic() + row.remaining
            self.tables.runs[run_id] = replace(row, deadline_at=deadline, remaining=None)


def as_stored(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` after the trip through canonical JSON that a database makes it take."""
    return dict(json.loads(canonical(value)))


def _link(event: Event, previous: bytes) -> Link:
    link = Link(
        seq=event.seq,
        at=event.at,
        attempt=event.attempt,
        kind=event.kind,
        node=event.node,
        task_id=event.task_id,
        call_id=event.call_id,
        trace_id=event.trace_id,
        span_id=event.span_id,
        payload=canonical(event.payload),
        hash=GENESIS,
    )
    return replace(link, hash=chained(previous, event.run_id, link))


def page(log: Sequence[_Item], *, after: int, limit: int) -> Sequence[_Item]:
    """Up to `limit` of a log, those with `seq > after`."""
    return tuple(one for one in log if one.seq > after)[: max(limit, 0)]
