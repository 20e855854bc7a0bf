"""A store that only remembers: what a run recorded, as the doors and the middleware of its replay ask for it.

It writes nothing, and no call that it lets through is ever a new one: without an intent the doors cannot send. The
first thing that the record does not answer stops the replay. (Leases, workers and tenants, which no session asks
for, are the store's own.)
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NoReturn

from holdfast.contracts.approvals import Approval, ApprovalKind, ApprovalRequest, ApprovalStatus, Ruling
from holdfast.contracts.calls import CallIntent, CallOutcome, CallRecord, Opened, Recorded
from holdfast.contracts.chain import Head, Link
from holdfast.contracts.errors import (
    BudgetExceeded,
    InvariantViolated,
    ReplayStopped,
    RuntimeErrorRecord,
)
from holdfast.contracts.events import Event, EventDraft, EventKind
from holdfast.contracts.ids import ApprovalId, BudgetId, CallId, RunId, TenantId, ThreadId
from holdfast.contracts.limits import BudgetState, Limits, Usage
from holdfast.contracts.ports import Leases, Retention, Runs, Store, Tenants, Workers
from holdfast.contracts.runs import Owner, Run, RunRequest, RunStatus
from holdfast.contracts.tenancy import Principal
from holdfast.runtime.trail import Trail

_ANSWERED = frozenset({EventKind.MODEL_REPLAYED, EventKind.TOOL_REPLAYED})
_DECIDED = frozenset(ApprovalStatus) - {ApprovalStatus.PENDING, ApprovalStatus.WITHDRAWN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Where the record had no answer."""

    node: str
    name: str
    """The model, the tool, or `question`."""
    why: str
    waits: bool = False
    """Whether the recorded run waits for the same: an outcome that nobody knows, or a question nobody answered."""


@dataclass(slots=True)
class Progress:
    """How far a replay has come."""

    replayed: list[str] = field(default_factory=list)
    """The ids of the calls whose records have answered, in the order of asking."""
    stop: Stop | None = None

    def answered_by(self, call_id: str) -> None:
        """Note that a record answered a call."""
        if call_id not in self.replayed:
            self.replayed.append(call_id)

    def halted(self, stop: Stop) -> ReplayStopped:
        """The replay stops here: what to raise. The first place counts."""
        if self.stop is None:
            self.stop = stop
        return ReplayStopped(f"the replay stopped in node {stop.node!r}: {stop.why}", node=stop.node, name=stop.name)

    def require_going(self) -> None:
        """Raise `ReplayStopped` when it has stopped: code that caught it must not go on."""
        if self.stop is not None:
            raise self.halted(self.stop)


class RecordedStore:
    """`contracts.ports.Store` of one run's replay."""

    def __init__(self, store: Store, run: Run, trail: Trail, events: Sequence[Event], *, whose: Set[RunId]) -> None:
        """`whose`: the run and those that it goes on for. What later runs of the thread recorded is not its own."""
        self.progress = Progress()
        self.runs: Runs = RecordedRuns(store.runs, self.progress)
        self.journal = RecordedJournal(store, self.progress, events, whose)
        self.ledger = RecordedLedger(store, run)
        self.events = RecordedEvents(self.progress)
        self.approvals = RecordedApprovals(store, trail, self.progress, whose)
        self.leases: Leases = store.leases
        self.heartbeat = store.heartbeat
        self.workers: Workers = store.workers
        self.retention: Retention = store.retention
        self.tenants: Tenants = store.tenants


class RecordedRuns:
    """`contracts.ports.Runs`: reads are the store's, a step counts nothing, and nothing else can be asked."""

    def __init__(self, runs: Runs, progress: Progress) -> None:
        self._runs = runs
        self._progress = progress

    async def begin_step(self, owner: Owner, *, node: str, task_id: str, event: EventDraft) -> bool:
        self._progress.require_going()
        return False

    async def get(self, tenant_id: TenantId, run_id: RunId) -> Run:
        return await self._runs.get(tenant_id, run_id)

    async def find(
        self,
        tenant_id: TenantId,
        *,
        thread_key: str | None = None,
        status: RunStatus | None = None,
        limit: int = 100,
    ) -> Sequence[Run]:
        return await self._runs.find(tenant_id, thread_key=thread_key, status=status, limit=limit)

    async def statuses(self, tenant_id: TenantId, run_ids: Sequence[RunId]) -> Mapping[RunId, RunStatus]:
        return await self._runs.statuses(tenant_id, run_ids)

    async def thread_id(self, tenant_id: TenantId, thread_key: str) -> ThreadId:
        return await self._runs.thread_id(tenant_id, thread_key)

    async def admit(self, request: RunRequest) -> Run:
        _refuse("admit")

    async def request_cancel(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, reason: str) -> Run:
        _refuse("request_cancel")

    async def reattach(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, served_by: str) -> Run:
        _refuse("reattach")

    async def rest(self, owner: Owner, *, next_action: str, event: EventDraft) -> RunStatus:
        _refuse("rest")

    async def finish(
        self, owner: Owner, status: RunStatus, *, output: Any, cause: RuntimeErrorRecord | None, event: EventDraft
    ) -> None:
        _refuse("finish")

    async def release(self, owner: Owner, *, event: EventDraft) -> None:
        _refuse("release")


class RecordedJournal:
    """`contracts.ports.Journal`: every call is answered by its record, or stops the replay."""

    def __init__(self, store: Store, progress: Progress, events: Sequence[Event], whose: Set[RunId]) -> None:
        self._journal = store.journal
        self._whose = whose
        self._progress = progress
        self.seen: dict[str, CallRecord] = {}
        """The records that were looked at, by their ids."""
        self._refusals = [event for event in events if event.kind is EventKind.BUDGET_REFUSED]

    async def open(self, owner: Owner, intent: CallIntent, *, event: EventDraft) -> Opened:
        identity = intent.identity
        record = await self.find(owner.tenant_id, owner.thread_id, identity.key)
        if record is not None:
            return Recorded(self._settled(record))
        for refused in self._refusals:
            if refused.task_id == identity.site.task_id and _name_in(refused) == identity.name:
                raise BudgetExceeded("a budget had no room for this call when it was recorded", **refused.payload)
        why = f"it asks for a call of {identity.name} that is not recorded"
        raise self._progress.halted(Stop(node=identity.site.node, name=identity.name, why=why))

    async def find(self, tenant_id: TenantId, thread_id: ThreadId, key: str) -> CallRecord | None:
        self._progress.require_going()
        record = await self._journal.find(tenant_id, thread_id, key)
        return record if record is not None and self._is_its_own(record) else None

    async def of_task(self, tenant_id: TenantId, thread_id: ThreadId, task_id: str) -> Mapping[str, CallRecord]:
        self._progress.require_going()
        known = await self._journal.of_task(tenant_id, thread_id, task_id)
        return _Answers({key: each for key, each in known.items() if self._is_its_own(each)}, self._settled)

    def _is_its_own(self, record: CallRecord) -> bool:
        return record.last_run_id in self._whose

    def _settled(self, record: CallRecord) -> CallRecord:
        """The record, if it has an outcome; what became of the call must not be found out again, but is not known."""
        self._progress.require_going()
        if record.status not in {"returned", "failed"}:
            name, node = record.identity.name, record.identity.site.node
            why = f"what became of its call of {name} is not known"
            raise self._progress.halted(Stop(node=node, name=name, why=why, waits=True))
        self.seen[record.call_id] = record
        return record

    async def resend(self, owner: Owner, call_id: CallId, *, reservation: Usage, event: EventDraft) -> CallRecord:
        _refuse("resend")

    async def close(self, owner: Owner, outcome: CallOutcome, *, event: EventDraft) -> CallRecord:
        _refuse("close")

    async def of_run(self, tenant_id: TenantId, run_id: RunId) -> Sequence[CallRecord]:
        return await self._journal.of_run(tenant_id, run_id)


def _name_in(event: Event) -> str:
    """The model or tool that an event is about."""
    facts = event.payload
    return str(facts["tool_name"]) if "tool_name" in facts else f"{facts.get('provider')}:{facts.get('model')}"


class _Answers(dict[str, CallRecord]):
    """What a task had called, by identity key; who looks a call up gets its outcome."""

    def __init__(self, known: Mapping[str, CallRecord], settled: Callable[[CallRecord], CallRecord]) -> None:
        super().__init__(known)
        self._settled = settled

    def get(self, key: str, default: Any = None) -> Any:
        return self._settled(self[key]) if key in self else default


class RecordedLedger:
    """`contracts.ports.Ledger`: a replay costs nothing, so every budget is as it was when the run began."""

    def __init__(self, store: Store, run: Run) -> None:
        self._ledger = store.ledger
        self._limits = run.limits

    async def open_share(
        self, owner: Owner, *, parent: BudgetId, share_key: str, limits: Limits, event: EventDraft
    ) -> BudgetId:
        return BudgetId(f"{parent}/{share_key}")

    async def state(self, tenant_id: TenantId, budget_id: BudgetId) -> BudgetState:
        return BudgetState(limits=self._limits, spent=Usage(), reserved=Usage())

    async def tenant_budget(self, tenant_id: TenantId) -> BudgetId:
        return await self._ledger.tenant_budget(tenant_id)


class RecordedEvents:
    """`contracts.ports.Events`: nothing happens in a replay that was an event. That a record answered is noted."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    async def append(self, owner: Owner, events: Sequence[EventDraft]) -> None:
        for event in events:
            if event.kind in _ANSWERED and event.call_id is not None:
                self._progress.answered_by(event.call_id)

    async def later(self, owner: Owner, events: Sequence[EventDraft]) -> None:
        await self.append(owner, events)

    async def stage(self, owner: Owner, task_id: str, events: Sequence[EventDraft]) -> None:
        await self.append(owner, events)

    async def read(self, tenant_id: TenantId, run_id: RunId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        return ()

    async def latest(self, tenant_id: TenantId, run_id: RunId, kind: EventKind) -> Event | None:
        return None

    async def links(self, tenant_id: TenantId, run_id: RunId, *, after: int = 0, limit: int = 1000) -> Sequence[Link]:
        return ()

    async def head(self, tenant_id: TenantId, run_id: RunId) -> Head | None:
        return None

    async def logs(self, tenant_id: TenantId, *, after: RunId | None = None, limit: int = 1000) -> Sequence[RunId]:
        return ()


class RecordedApprovals:
    """`contracts.ports.Approvals`: what is asked in the replay is what was asked then, with its answer."""

    def __init__(self, store: Store, trail: Trail, progress: Progress, whose: Set[RunId]) -> None:
        self._approvals = store.approvals
        self._whose = whose
        self._trail = trail
        self._progress = progress
        self._asked: dict[str, Approval] = {}

    def answered(self, interrupt_id: str) -> Approval | None:
        """What the question of a replay's interrupt was answered with, if anybody did."""
        approval = self._asked.get(interrupt_id)
        return approval if approval is not None and approval.status in _DECIDED else None

    async def ask(self, owner: Owner, request: ApprovalRequest, *, event: EventDraft) -> Approval:
        self._progress.require_going()
        approval = await self._asked_then(owner, request)
        if approval is None or approval.run_id not in self._whose:
            raise self._progress.halted(_unasked(request))
        self._asked[request.interrupt_id] = approval
        return approval

    async def stage(self, owner: Owner, request: ApprovalRequest, *, event: EventDraft) -> None:
        await self.ask(owner, request, event=event)

    async def _asked_then(self, owner: Owner, request: ApprovalRequest) -> Approval | None:
        if request.identity_key is None:
            then = self._trail.interrupt(request.task_id, request.interrupt_id)
            return await self._approvals.of_interrupt(owner.tenant_id, owner.thread_id, then)
        asked = await self._approvals.of_task(owner.tenant_id, owner.thread_id, request.task_id)
        same = [each for each in asked if each.identity_key == request.identity_key and each.kind is request.kind]
        return same[-1] if same else None

    async def get(self, tenant_id: TenantId, approval_id: ApprovalId) -> Approval:
        return await self._approvals.get(tenant_id, approval_id)

    async def of_interrupt(self, tenant_id: TenantId, thread_id: ThreadId, interrupt_id: str) -> Approval | None:
        return await self._approvals.of_interrupt(tenant_id, thread_id, interrupt_id)

    async def of_task(self, tenant_id: TenantId, thread_id: ThreadId, task_id: str) -> Sequence[Approval]:
        return await self._approvals.of_task(tenant_id, thread_id, task_id)

    async def find(
        self,
        tenant_id: TenantId,
        *,
        run_id: RunId | None = None,
        thread_key: str | None = None,
        pending_only: bool = True,
        limit: int = 100,
    ) -> Sequence[Approval]:
        return await self._approvals.find(
            tenant_id, run_id=run_id, thread_key=thread_key, pending_only=pending_only, limit=limit
        )

    async def tenant_of(self, principal: Principal, approval_id: ApprovalId) -> TenantId:
        return await self._approvals.tenant_of(principal, approval_id)

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
        _refuse("decide")

    async def expire(self, *, principal: Principal, limit: int = 100) -> Sequence[Approval]:
        _refuse("expire")


def _unasked(request: ApprovalRequest) -> Stop:
    if request.kind is ApprovalKind.MISMATCH:
        name = request.tool_name or "a tool"
        return Stop(node=request.node, name=name, why=f"it no longer asks for {name} as it had asked")
    what = request.tool_name or "question"
    return Stop(node=request.node, name=what, why="a person would be asked what nobody was asked then")


def _refuse(what: str) -> NoReturn:
    raise InvariantViolated(f"a replay was to write ({what}); it only reads")
