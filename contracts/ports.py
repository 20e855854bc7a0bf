"""What the upper rooms need of the store and of the process, as protocols.

Implemented on Postgres in `checkpoints` and in memory in `holdfast.testing`; both pass `tests/conformance`.
Every method says for whom it works: by an `Owner`, a tenant or a principal. Every write joins its events to the
same commit. A write for a run whose epoch has moved on raises `LeaseLost` and leaves no trace; a store that cannot
be reached raises `StoreUnavailable`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from holdfast.contracts.approvals import Approval, ApprovalRequest, Ruling
from holdfast.contracts.calls import CallIntent, CallOutcome, CallRecord, Opened
from holdfast.contracts.chain import Head, Link
from holdfast.contracts.errors import RuntimeErrorRecord
from holdfast.contracts.events import Event, EventDraft, EventKind
from holdfast.contracts.ids import ApprovalId, BudgetId, CallId, RunId, TenantId, ThreadId
from holdfast.contracts.limits import BudgetState, Limits, Usage
from holdfast.contracts.retention import Pruned
from holdfast.contracts.runs import GraphVersion, Owner, Run, RunClaim, RunRequest, RunStatus
from holdfast.contracts.tenancy import Principal, Tenant
from holdfast.contracts.workers import LiveWorker, ServedGraph, WantedVersion


class Ids(Protocol):
    """Makes new ids."""

    def new(self) -> str:
        """A new UUIDv7 (RFC 9562), as text."""
        ...


class Dice(Protocol):
    """Randomness as an argument, for jitter alone."""

    def fraction(self) -> float:
        """A number in [0, 1)."""
        ...


class Renewal(BaseModel):
    """The answer to a heartbeat."""

    model_config = ConfigDict(frozen=True)

    held: bool
    """False: the lease has run out or moved on."""
    cancel_requested: bool = False


class Runs(Protocol):
    """Runs and their threads."""

    async def admit(self, request: RunRequest) -> Run:
        """Write the run, its thread, its budget and its first event in one commit, and wake a worker.

        A run with an origin writes its event into both logs. A fork gets a new thread with a copy of the history up
        to its checkpoint; a resumed one gets the thread of the run that ended, and begins with what that one had spent
        or may have spent.

        Raises `AdmissionRefused` when the tenant's queue is full, `NotFound` for an unknown tenant, origin or
        checkpoint, `Conflict` for a fork's thread that exists and an origin that cannot be resumed, and
        `ContentsPruned` for one whose contents retention has taken. Admitting the same run id again with the same
        request returns the run; with another, `Conflict`.
        """
        ...

    async def get(self, tenant_id: TenantId, run_id: RunId) -> Run:
        """The run; `NotFound` when this tenant has none of that id."""
        ...

    async def find(
        self,
        tenant_id: TenantId,
        *,
        thread_key: str | None = None,
        status: RunStatus | None = None,
        limit: int = 100,
    ) -> Sequence[Run]:
        """The tenant's runs, newest first."""
        ...

    async def statuses(self, tenant_id: TenantId, run_ids: Sequence[RunId]) -> Mapping[RunId, RunStatus]:
        """How these runs of the tenant stand; those it does not have are left out."""
        ...

    async def thread_id(self, tenant_id: TenantId, thread_key: str) -> ThreadId:
        """Our id of the tenant's thread; `NotFound` when it has none of that name."""
        ...

    async def request_cancel(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, reason: str) -> Run:
        """Ask a run to stop. One that is queued or interrupted is `cancelled` at once, as by `finish`; one that is
        running is told by the answer to its worker's heartbeat, which a notification hurries; one that has ended
        raises `Conflict`."""
        ...

    async def reattach(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, served_by: str) -> Run:
        """Let an attached run that rests go on in its host: running again, its clock too, under the next epoch and
        attempt, by the version `served_by` of its graph. `Conflict` when it does not rest, `NotFound` for a
        stranger."""
        ...

    async def begin_step(self, owner: Owner, *, node: str, task_id: str, event: EventDraft) -> bool:
        """Before a node: count the step (a task that is run again is the same step), and see to it that its event is
        written before anything else of that node. Returns whether the run had been asked to stop when its attempt
        began; an attached run, which no heartbeat tells, whether it has been by now. Raises `BudgetExceeded` when the
        steps are used up, and `LeaseLost` for an owner that is known to hold its run no more."""
        ...

    async def rest(self, owner: Owner, *, next_action: str, event: EventDraft) -> RunStatus:
        """Park the run until a person decides: stops its clock and releases the lease. Returns `interrupted`, or
        `queued` when something was already decided meanwhile, or someone wants the run to stop."""
        ...

    async def finish(
        self,
        owner: Owner,
        status: RunStatus,
        *,
        output: Any,
        cause: RuntimeErrorRecord | None,
        event: EventDraft,
    ) -> None:
        """End the run, release the lease, and withdraw what is still asked. Idempotent for the same status. A run that
        was asked to stop and is cancelled has as its cause who asked, and why.

        Calls of any attempt that have no outcome get their last word: what only reads, a model call too, has failed
        and is spent in full; an effect is unknown, and stays reserved until a resumed run has reconciled it."""
        ...

    async def release(self, owner: Owner, *, event: EventDraft) -> None:
        """Hand the run back to the queue: the attempt is over, the run is not."""
        ...


class Leases(Protocol):
    """Who works on what. Times are the database's. A claim crosses tenants: it works for the worker's process."""

    async def claim(
        self,
        worker_id: str,
        *,
        tenants: Sequence[TenantId] | None,
        graphs: Mapping[GraphVersion, str],
        slots: int,
        ttl_seconds: float,
    ) -> Sequence[RunClaim]:
        """Up to `slots` queued runs, and runs whose lease has run out, of these versions of graphs: their epoch goes
        up by one, their attempt too. Each version is given with the one whose code serves it, which the claim and its
        event tell. `tenants=None`: of any tenant. Never two runs of one thread at a time, and never one that is behind
        another on its thread. A run whose worker was lost `max_attempts` times in a row is claimed too: its worker
        ends it."""
        ...

    async def disown(self, worker_id: str, *, held: Collection[RunId]) -> None:
        """Let all leases of a worker run out now but those of the runs that it holds: what it has claimed without
        hearing of it. They can be claimed again at once, as those of a worker that was lost."""
        ...

    async def seconds_to_next_expiry(self) -> float | None:
        """Until the first lease runs out that is good now, whoever holds it, unless it is prolonged; None: there is
        none. Somebody who has nothing to do looks again then, and takes over what nobody has prolonged."""
        ...


class Heartbeat(Protocol):
    """Prolongs leases over a connection that nothing else waits for. For one loop, and one call at a time."""

    async def renew(self, worker_id: str, owners: Sequence[Owner], *, ttl_seconds: float) -> Mapping[RunId, Renewal]:
        """Prolong leases that are still ours, have not run out and are of running runs.

        Raises `StoreUnavailable` when there is no answer within the seconds that it was made for: a database that has
        gone deaf must not hold the next beat.
        """
        ...

    async def close(self) -> None:
        """Give the connection back."""
        ...


class Journal(Protocol):
    """What was asked of the outside and what came of it."""

    async def open(self, owner: Owner, intent: CallIntent, *, event: EventDraft) -> Opened:
        """Look the identity up; when it is not recorded, write the intent, reserve its budget on every budget of
        the path, use up its grant, and write the event, in one commit.

        Opening the same intent (call id and epoch) again changes nothing, so that a lost answer can be asked for once
        more. An intent whose writing is cancelled does not stay open. Raises `BudgetExceeded` (no budget is touched)
        and `PolicyDenied` (the grant is used, expired, or for something else), and `ContentsPruned` for a call that is
        recorded, and of which retention has left the facts alone.
        """
        ...

    async def resend(self, owner: Owner, call_id: CallId, *, reservation: Usage, event: EventDraft) -> CallRecord:
        """Before an open call is sent again by a later attempt: what the earlier send reserved counts as spent, and
        `reservation` is reserved anew, on the owner's own budget where an ended run had sent it. Raises
        `BudgetExceeded`."""
        ...

    async def close(self, owner: Owner, outcome: CallOutcome, *, event: EventDraft) -> CallRecord:
        """Record the outcome and settle the reservation on every budget of the path, in one commit. Usage above
        the reservation is recorded in full. Idempotent by call id; an outcome that is there already stands."""
        ...

    async def find(self, tenant_id: TenantId, thread_id: ThreadId, key: str) -> CallRecord | None:
        """The call with this identity key (`CallIdentity.key`), if there is one."""
        ...

    async def of_task(self, tenant_id: TenantId, thread_id: ThreadId, task_id: str) -> Mapping[str, CallRecord]:
        """The calls that a task has made so far, by identity key: what a node that runs again is answered from."""
        ...

    async def of_run(self, tenant_id: TenantId, run_id: RunId) -> Sequence[CallRecord]:
        """The calls that a run opened, or sent again for one that had ended, in order."""
        ...


class Ledger(Protocol):
    """Budgets: the run's, its specialists', the tenant's. Calls reserve and settle through the journal."""

    async def open_share(
        self, owner: Owner, *, parent: BudgetId, share_key: str, limits: Limits, event: EventDraft
    ) -> BudgetId:
        """A budget for a specialist under `parent`. Idempotent by (run's thread, `share_key`): a node that runs
        again gets the same budget, with what it has spent."""
        ...

    async def state(self, tenant_id: TenantId, budget_id: BudgetId) -> BudgetState:
        """Limits, spent and reserved."""
        ...

    async def tenant_budget(self, tenant_id: TenantId) -> BudgetId:
        """The id of the budget that all runs of the tenant share."""
        ...


class Events(Protocol):
    """The append-only log of each run."""

    async def append(self, owner: Owner, events: Sequence[EventDraft]) -> None:
        """Write events that belong to no other change; returns when they are committed."""
        ...

    async def later(self, owner: Owner, events: Sequence[EventDraft]) -> None:
        """The same for events that nobody waits for: soon, and before anything that is written for this owner
        afterwards. A failure shows in the owner's next write."""
        ...

    async def stage(self, owner: Owner, task_id: str, events: Sequence[EventDraft]) -> None:
        """Write events in the commit of what a task leaves in the checkpoint; at the latest when the attempt ends. Of
        an attached run, whose checkpoints are its host's, at once."""
        ...

    async def read(self, tenant_id: TenantId, run_id: RunId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Events with `seq > after`, in order."""
        ...

    async def latest(self, tenant_id: TenantId, run_id: RunId, kind: EventKind) -> Event | None:
        """The last event of this kind, if there is one."""
        ...

    async def links(self, tenant_id: TenantId, run_id: RunId, *, after: int = 0, limit: int = 1000) -> Sequence[Link]:
        """The same events as their chain has them, to be verified."""
        ...

    async def head(self, tenant_id: TenantId, run_id: RunId) -> Head | None:
        """Where the run's chain ends; None when there is no such run, or it has lost its head."""
        ...

    async def logs(self, tenant_id: TenantId, *, after: RunId | None = None, limit: int = 1000) -> Sequence[RunId]:
        """The tenant's runs by id, those with a greater one than `after`: each has a log."""
        ...


class Workers(Protocol):
    """Who is there to work, and what the open runs need. It crosses tenants, and shows nothing of theirs but how many
    runs of which graphs are open."""

    async def announce(self, worker_id: str, serves: Sequence[ServedGraph], *, ttl_seconds: float) -> None:
        """Say that a worker is there and what it serves, for so long; those who have not said so in time are
        forgotten."""
        ...

    async def leave(self, worker_id: str) -> None:
        """Say that a worker is gone."""
        ...

    async def alive(self) -> Sequence[LiveWorker]:
        """The workers that are there, by the database's clock."""
        ...

    async def wanted(self) -> Sequence[WantedVersion]:
        """The versions of graphs that open runs are pinned to, by name."""
        ...

    async def claimable(self, names: Sequence[str]) -> Sequence[GraphVersion]:
        """The versions of these graphs that queued or running runs are pinned to. Cheap, whatever the queue holds:
        a worker that declares a range asks before each claim."""
        ...


class Approvals(Protocol):
    """The inbox."""

    async def ask(self, owner: Owner, request: ApprovalRequest, *, event: EventDraft) -> Approval:
        """Put a question in the inbox. Idempotent by (thread, interrupt id), unless it was withdrawn with its run: then
        the run that goes on for that one asks anew."""
        ...

    async def stage(self, owner: Owner, request: ApprovalRequest, *, event: EventDraft) -> None:
        """The same in the commit of what the task of the interrupt leaves in the checkpoint (see `Events.stage`)."""
        ...

    async def get(self, tenant_id: TenantId, approval_id: ApprovalId) -> Approval:
        """The approval; `NotFound` when this tenant has none of that id."""
        ...

    async def of_interrupt(self, tenant_id: TenantId, thread_id: ThreadId, interrupt_id: str) -> Approval | None:
        """The approval of an interrupt, if it was asked."""
        ...

    async def of_task(self, tenant_id: TenantId, thread_id: ThreadId, task_id: str) -> Sequence[Approval]:
        """What a task has asked, oldest first. The approvals of one call have its identity's key."""
        ...

    async def find(
        self,
        tenant_id: TenantId,
        *,
        run_id: RunId | None = None,
        thread_key: str | None = None,
        pending_only: bool = True,
        limit: int = 100,
    ) -> Sequence[Approval]:
        """Approvals of the tenant, oldest first."""
        ...

    async def tenant_of(self, principal: Principal, approval_id: ApprovalId) -> TenantId:
        """Whose approval this is, for a principal that may act for that tenant; `NotFound` otherwise."""
        ...

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
        """Record a decision by compare-and-set and put the run back in the queue, its clock running again, in one
        commit. `Conflict` when it is not pending any more; `NotFound` for a stranger."""
        ...

    async def expire(self, *, principal: Principal, limit: int = 100) -> Sequence[Approval]:
        """Expire what is overdue, across tenants, and put its runs back in the queue. For a worker's own principal."""
        ...


class Retention(Protocol):
    """What a tenant's terms let go of, and what is held."""

    async def hold(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, reason: str) -> Run:
        """Put a legal hold on a run, whatever state it is in, with its event. `Conflict` when there is one already,
        `NotFound` for a stranger."""
        ...

    async def lift(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, reason: str) -> Run:
        """Take the hold off again, with its event. `Conflict` when there is none."""
        ...

    async def prune(self, tenant_id: TenantId, *, at_most: int = 10_000) -> Sequence[Pruned]:
        """Take out what the tenant's terms let go of by now and nobody holds: about `at_most` events and as many rows'
        contents, in commits of their own, each with its event. Nothing while another process prunes for the tenant.
        Call it again until it returns nothing.

        A run keeps its contents while a run of its thread is open or held, a call of it has no outcome, or a run that
        goes on for it has kept its own."""
        ...


class Tenants(Protocol):
    """The tenants' terms."""

    async def put(self, tenant: Tenant) -> None:
        """Make or change a tenant and its shared budget's limits."""
        ...

    async def get(self, tenant_id: TenantId) -> Tenant:
        """The tenant's terms; `NotFound` for an unknown one."""
        ...

    async def names(self, *, principal: Principal) -> Sequence[TenantId]:
        """The tenants a principal may see."""
        ...


class Store(Protocol):
    """All ports of one database."""

    def heartbeat(self, *, within_seconds: float) -> Heartbeat:
        """A heartbeat that is answered, or fails, within so many seconds."""
        ...

    @property
    def runs(self) -> Runs: ...
    @property
    def leases(self) -> Leases: ...
    @property
    def journal(self) -> Journal: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def events(self) -> Events: ...
    @property
    def approvals(self) -> Approvals: ...
    @property
    def retention(self) -> Retention: ...
    @property
    def tenants(self) -> Tenants: ...
    @property
    def workers(self) -> Workers: ...
