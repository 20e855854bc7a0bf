"""The face of the engine: start a run, wait for it, decide, cancel, look. There is no second path to a run."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from holdfast.contracts.approvals import Approval, DecisionType
from holdfast.contracts.calls import CallRecord
from holdfast.contracts.chain import Verification
from holdfast.contracts.errors import InvalidRequest, InvariantViolated, NotFound, TimedOut
from holdfast.contracts.events import Event, EventKind
from holdfast.contracts.ids import ApprovalId, BudgetId, RunId, TenantId, ThreadId, uuid_text
from holdfast.contracts.limits import BudgetState, Limits
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.runs import Run, RunRequest, RunResult, RunStatus
from holdfast.contracts.tenancy import Principal, TenantContext
from holdfast.policies import rulings
from holdfast.policies.compatibility import unserved
from holdfast.policies.tenancy import effective_limits, require_may_decide, require_may_hold
from holdfast.policies.travel import require_may_travel
from holdfast.runtime import inputs
from holdfast.runtime.directory import Directory
from holdfast.runtime.following import Followers
from holdfast.runtime.registry import Graph, Registry, is_governed
from holdfast.runtime.replay import Replayer, ReplayReport
from holdfast.runtime.sessions import Doors, SaverFor
from holdfast.runtime.travel import HistoryEntry, Travel
from holdfast.runtime.verification import verified, verified_all
from holdfast.runtime.waiting import Lookout
from holdfast.runtime.wake import Wake
from holdfast.runtime.worker import Worker
from holdfast.telemetry.spans import admission_span, trace_parent, traced_event

_ADMITTED_INPUT_BYTES = 1_048_576
_NO_REASON = "no reason was given"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Everything worth knowing of a run."""

    run: Run
    served_by: str | None
    """The version of the graph whose code served the last attempt; None: nobody has worked on it yet."""
    served: bool
    """Whether a worker that is there goes on with the run's version; true of a run that has ended, or is attached."""
    budget: BudgetState
    calls: Sequence[CallRecord]
    approvals: Sequence[Approval]


@dataclass(frozen=True, slots=True)
class RunHandle:
    """A run that was started or looked up. It holds nothing open: any process can have one for the same run."""

    run_id: RunId
    thread_id: ThreadId
    thread: str
    """The user's own key of the thread."""
    tenant_id: TenantId
    _runtime: "Runtime" = field(repr=False, compare=False)

    @property
    def id(self) -> RunId:
        """The run's id."""
        return self.run_id

    async def result(self, timeout: float | None = None) -> RunResult:
        """Wait until the run rests (it has ended, or a person must decide) and say how it stands.

        `timeout` in seconds bounds the waiting, not the run; `TimedOut` when it passes.
        """
        return await self._runtime.wait(self.run_id, tenant=self.tenant_id, timeout=timeout)

    async def status(self) -> RunStatus:
        """How the run stands now."""
        return (await self._runtime.store.runs.get(self.tenant_id, self.run_id)).status

    async def events(self, *, after: int = 0) -> Sequence[Event]:
        """The run's events with a `seq` greater than `after`; see `Runtime.events`."""
        return await self._runtime.events(self.run_id, tenant=self.tenant_id, after=after)

    def follow(self, *, after: int = 0, until: Literal["end", "rest"] = "end") -> AsyncIterator[Event]:
        """The run's events as they commit; see `Runtime.follow`."""
        return self._runtime.follow(self.run_id, tenant=self.tenant_id, after=after, until=until)

    async def cancel(self, *, by: "str | Principal", reason: str = "") -> None:
        """Ask the run to stop; see `Runtime.cancel`."""
        await self._runtime.cancel(self.run_id, tenant=self.tenant_id, by=by, reason=reason)


class Runtime:
    """Runs governed graphs. Made by `holdfast.open_runtime()`."""

    def __init__(
        self,
        *,
        doors: Doors,
        registry: Registry,
        directory: Directory,
        wake: Wake,
        govern: Callable[[Any], Graph],
        saver_for: SaverFor,
        max_input_bytes: int = _ADMITTED_INPUT_BYTES,
        max_attempts: int = 5,
        worker: Worker | None = None,
    ) -> None:
        self.store = doors.store
        self._doors = doors
        self._registry = registry
        self._directory = directory
        self._wake = wake
        self._govern = govern
        self._travel = Travel(doors=doors, registry=registry, saver_for=saver_for, max_input_bytes=max_input_bytes)
        self._replayer = Replayer(doors=doors, registry=registry, saver_for=saver_for)
        self._max_input_bytes = max_input_bytes
        self._max_attempts = max_attempts
        self._worker = worker
        self._lookout = Lookout(doors.store.runs)
        self._followers = Followers(doors.store.events, self._lookout, wake)
        self._lost_worker: BaseException | None = None

    async def start(
        self,
        graph: Any,
        input: Any,  # noqa: A002  # LangGraph's word
        *,
        tenant: str,
        user: str | Principal | None = None,
        thread: str | None = None,
        limits: Limits | None = None,
        context: Any = None,
        run_id: str | None = None,
    ) -> RunHandle:
        """Admit a run: from the moment this returns it cannot be lost.

        `graph` is a compiled graph, or the name of a registered one. `thread` is your own key of the conversation to
        go on with; left out, a new thread is made. `limits` that are left out take the tenant's defaults. `run_id`
        (a UUID) makes the request idempotent: the same again returns the same run.

        Raises `InvalidRequest` (input, context or ids that do not fit), `TooLarge`, `NotFound` (graph, tenant, user),
        `PolicyDenied` (a limit the tenant may not have), `AdmissionRefused` (come back later), `Conflict` (the run id
        was used for something else), `StoreUnavailable`.
        """
        hydrated = self._hydrate(graph)
        governance: Any = hydrated.governance  # type: ignore[attr-defined]  # _hydrate returns governed graphs only
        terms = await self.store.tenants.get(TenantId(tenant))
        new_id = RunId(uuid_text(run_id, what="run") if run_id is not None else self._doors.ids.new())
        kind, data = inputs.checked_input(hydrated, input, max_bytes=self._max_input_bytes)
        return await self._admitted(
            RunRequest(
                run_id=new_id,
                thread_key=_thread_key(thread, new_id),
                graph_name=governance.name,
                graph_version=governance.version,
                tenant=self._tenant_context(TenantId(tenant), user, governance.policies),
                input=data,
                input_type=kind,
                context=inputs.checked_context(hydrated, context),
                limits=effective_limits(terms, limits),
                max_attempts=self._max_attempts,
            )
        )

    async def run(self, run_id: str, *, tenant: str) -> RunHandle:
        """The handle of a run that exists; `NotFound` otherwise."""
        return self._handle(await self._get(run_id, tenant))

    async def runs(
        self, *, tenant: str, thread: str | None = None, status: RunStatus | str | None = None, limit: int = 100
    ) -> Sequence[Run]:
        """The tenant's runs, newest first, at most `limit`. Raises `InvalidRequest` for a status that there is not."""
        wanted = None if status is None else _status(status)
        return await self.store.runs.find(TenantId(tenant), thread_key=thread, status=wanted, limit=limit)

    async def wait(self, run_id: str, *, tenant: str, timeout: float | None = None) -> RunResult:
        """Wait until the run rests; see `RunHandle.result`."""
        try:
            async with asyncio.timeout(timeout):
                run = await self._get(run_id, tenant)
                while True:
                    bell = self._wake.listen()
                    status = await self._lookout.status(run.tenant.tenant_id, run.run_id)
                    if status is not None and status.resting:
                        return await self._result(await self._get(run_id, tenant))
                    if self._lost_worker is not None:
                        raise InvariantViolated(
                            f"this process's worker has died ({self._lost_worker!r}); run {run_id} goes on as soon as "
                            "another worker is there"
                        ) from self._lost_worker
                    await self._wake.heard(bell)
        except TimeoutError as error:
            raise TimedOut(
                f"run {run_id} did not rest within {timeout} s; it goes on, and result() can be asked again",
                timeout_seconds=timeout,
            ) from error

    async def show(self, run_id: str, *, tenant: str) -> RunReport:
        """A run with its budget, calls and approvals, and with whose code goes on with it. Raises `NotFound`."""
        run = await self._get(run_id, tenant)
        tenant_id = run.tenant.tenant_id
        return RunReport(
            run=run,
            served_by=await self._served_by(run),
            served=await self._is_served(run),
            budget=await self.store.ledger.state(tenant_id, BudgetId(run.run_id)),
            calls=await self.store.journal.of_run(tenant_id, run.run_id),
            approvals=await self.store.approvals.find(tenant_id, run_id=run.run_id, pending_only=False),
        )

    async def serves(self, run_id: str, *, tenant: str) -> bool:
        """Whether the graphs that are registered here go on with a run; a worker of another process may as well.
        Raises `NotFound`."""
        run = await self._get(run_id, tenant)
        return self._registry.serves(run.graph_name, run.graph_version)

    async def events(self, run_id: str, *, tenant: str, after: int = 0, limit: int = 10_000) -> Sequence[Event]:
        """The run's events with a `seq` greater than `after`, in order, at most `limit`. Raises `NotFound`."""
        run = await self._get(run_id, tenant)
        return await self.store.events.read(run.tenant.tenant_id, run.run_id, after=after, limit=limit)

    async def follow(
        self, run_id: str, *, tenant: str, after: int = 0, until: Literal["end", "rest"] = "end"
    ) -> AsyncGenerator[Event, None]:
        """The run's events with a `seq` greater than `after`, as they commit: each once and in order, whatever becomes
        of the connection meanwhile. Ends when the run has ended; with `until="rest"` also when a person must decide.

        To go on later, pass the `seq` of the last event seen. Raises `NotFound` when it is first asked for an event.
        """
        run = await self._get(run_id, tenant)
        following = self._followers.follow(
            run.tenant.tenant_id, run.run_id, after=after, until_it_rests=until == "rest"
        )
        async for event in following:
            yield event

    async def verify_events(self, run_id: str, *, tenant: str) -> Verification:
        """Whether the run's events are the ones that were written: recomputes the hash of each from its row. Raises
        `NotFound`; that a log is broken is in what it returns."""
        run = await self._get(run_id, tenant)
        return await verified(self.store.events, run.tenant.tenant_id, run.run_id)

    async def verify_all_events(self, *, tenant: str) -> AsyncGenerator[Verification, None]:
        """The same for every run of the tenant, one after the other. Raises `NotFound` for an unknown tenant."""
        await self.store.tenants.get(TenantId(tenant))
        async for found in verified_all(self.store.events, TenantId(tenant)):
            yield found

    async def approvals(
        self, *, tenant: str, run_id: str | None = None, thread: str | None = None, pending_only: bool = True
    ) -> Sequence[Approval]:
        """What the tenant's people are asked, oldest first; with `pending_only=False` also what they were asked, and
        what became of it. Raises `InvalidRequest` for a `run_id` that is no id."""
        return await self.store.approvals.find(
            TenantId(tenant),
            run_id=None if run_id is None else RunId(uuid_text(run_id, what="run")),
            thread_key=thread,
            pending_only=pending_only,
        )

    async def decide(
        self,
        approval_id: str,
        decision: DecisionType,
        *,
        by: str | Principal,
        args: Mapping[str, Any] | None = None,
        message: str | None = None,
        value: Any = None,
    ) -> Approval:
        """Decide what a person was asked, and put the run back in the queue.

        `by` is a principal, or the name of one in the configured directory (a bare name will do on the embedded
        database alone). `args` goes with `edit`; `message` tells the model why (`reject`) or what (`respond`);
        `value` answers a plain `interrupt(...)`.

        Raises `NotFound` (no such approval for this principal), `PolicyDenied` (not entitled), `Conflict` (decided
        or expired already), `InvalidRequest` (the decision does not fit the question).
        """
        principal = self._directory.principal(by)
        known = ApprovalId(uuid_text(approval_id, what="approval"))
        tenant_id = await self.store.approvals.tenant_of(principal, known)
        approval = await self.store.approvals.get(tenant_id, known)
        require_may_decide(principal, approval)
        ruling = rulings.ruling_of(decision, args=args, message=message, value=value)
        decided = await self.store.approvals.decide(
            principal,
            tenant_id,
            known,
            ruling,
            decision=rulings.recorded_decision(approval, ruling),
            granted_digest=rulings.granted_digest(approval, ruling),
            event=traced_event(
                EventKind.APPROVAL_DECIDED,
                {"approval_id": known, "decision": decision, "by": principal.user_id},
                node=approval.node,
                task_id=approval.task_id,
            ),
        )
        await reach(Mark.APPROVAL_DECIDED)
        self._wake.ring()
        return decided

    async def cancel(self, run_id: str, *, tenant: str, by: str | Principal, reason: str = "") -> Run:
        """Ask a run to stop. One that waits is cancelled at once; one that runs stops as soon as its worker hears of
        it: by a notification, or else with its next heartbeat.

        Raises `NotFound` (no such run, or `by` does not belong to its tenant), and `Conflict` when the run has ended.
        """
        principal = self._directory.principal(by)
        run = await self._get(run_id, tenant)
        cancelled = await self.store.runs.request_cancel(
            principal, run.tenant.tenant_id, run.run_id, reason=reason or _NO_REASON
        )
        self._wake.ring()
        return cancelled

    async def hold(self, run_id: str, *, tenant: str, by: str | Principal, reason: str = "") -> Run:
        """Put a legal hold on a run: nothing of its log is pruned, nor of its thread's contents, and no checkpoint of
        its thread deleted, until the hold is lifted.

        Raises `NotFound`, `PolicyDenied` (that takes the role `approver` or `admin`), `Conflict` (it is held already).
        """
        tenant_id, known = TenantId(tenant), RunId(uuid_text(run_id, what="run"))
        principal = self._holder(by, tenant_id, known, lifting=False)
        return await self.store.retention.hold(principal, tenant_id, known, reason=reason or _NO_REASON)

    async def lift(self, run_id: str, *, tenant: str, by: str | Principal, reason: str = "") -> Run:
        """Take a legal hold off a run; the tenant's terms of retention hold for it again.

        Raises `NotFound`, `PolicyDenied` (that takes the role `admin`), `Conflict` (it is not held).
        """
        tenant_id, known = TenantId(tenant), RunId(uuid_text(run_id, what="run"))
        principal = self._holder(by, tenant_id, known, lifting=True)
        return await self.store.retention.lift(principal, tenant_id, known, reason=reason or _NO_REASON)

    async def state(self, thread: str, *, tenant: str, at: str | None = None, by: str | Principal | None = None) -> Any:
        """The state that a thread has reached, as plain JSON: what a next run on it goes on from.

        `thread` is your key, or the id of one of its runs. With `at`, a checkpoint's id, the state as it was then:
        that needs `by`, a principal with the role `operator` or `admin`.

        Raises `NotFound` (thread, checkpoint, or its graph's version is not served here); with `at` also
        `InvalidRequest` (nobody is named in `by`), `PolicyDenied`, and `Conflict` for the thread of an attached run.
        """
        tenant_id = TenantId(tenant)
        if at is not None:
            if by is None:
                raise InvalidRequest("who looks at an earlier state must be said: give `by`")
            require_may_travel(self._directory.principal(by), tenant_id, "look at earlier states")
        return await self._travel.state(tenant_id, thread, at=at)

    async def history(
        self, thread: str, *, tenant: str, by: str | Principal, limit: int = 100, before: str | None = None
    ) -> Sequence[HistoryEntry]:
        """The checkpoints of a thread, newest first; `before` (one's id) goes on where a list ended.

        Raises `NotFound` (thread, checkpoint, or its graph's version is not served here), `PolicyDenied`, and
        `Conflict` for the thread of an attached run, whose checkpoints its host keeps.
        """
        tenant_id = TenantId(tenant)
        require_may_travel(self._directory.principal(by), tenant_id, "look at the history of a thread")
        return await self._travel.history(tenant_id, thread, limit=limit, before=before)

    async def fork(
        self,
        source: str,
        /,
        *,
        tenant: str,
        by: str | Principal,
        at: str | None = None,
        thread: str | None = None,
        values: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
    ) -> RunHandle:
        """Go on from a checkpoint on a new thread, which has a copy of the history up to there.

        `source` is a thread's key or the id of one of its runs, `at` a checkpoint of it (left out, the latest),
        `thread` the new one's key. `values` update the state first; which nodes come next stays as it was. Limits that
        are left out are those of the run that wrote the checkpoint, and the fork has all of them for itself.

        Nothing after the checkpoint is taken over: the fork's calls are new ones, which policy is asked about, people
        are asked about, and somebody pays for. Raises what `history` does and `start` besides; `Conflict` when there is
        a thread of that key, `ContentsPruned` when retention took the contents of the run that wrote the checkpoint.
        """
        principal, tenant_id = self._directory.principal(by), TenantId(tenant)
        require_may_travel(principal, tenant_id, "fork a run")
        new_id = RunId(self._doors.ids.new())
        request = await self._travel.fork(
            tenant_id,
            source,
            at=at,
            by=principal,
            new_thread=_thread_key(thread, new_id),
            run_id=new_id,
            values=values,
            limits=limits,
        )
        return await self._admitted(request)

    async def resume(self, run_id: str, *, tenant: str, by: str | Principal, limits: Limits | None = None) -> RunHandle:
        """Go on where a run failed or was cancelled: a new run on its thread, for nothing reopens a run.

        It has the thread's journal: what was returned stands, what failed is tried again, what is unknown is found out
        first. And it has what the ended run spent: limits, its own where none are given, hold for both together. The
        time between the two counts for neither.

        Raises `NotFound`, `PolicyDenied` (roles `operator` and `admin` may), `Conflict` (it has not ended, completed,
        is attached, or was followed by another run; `ContentsPruned` where retention took its contents),
        `BudgetExceeded` and `DeadlineExceeded` (the limits leave less than nothing), and what `start` raises.
        """
        principal, run = self._directory.principal(by), await self._get(run_id, tenant)
        require_may_travel(principal, run.tenant.tenant_id, "resume a run")
        new_id = RunId(self._doors.ids.new())
        return await self._admitted(await self._travel.resume(run, by=principal, run_id=new_id, limits=limits))

    async def replay(self, run_id: str, *, tenant: str, by: str | Principal) -> ReplayReport:
        """What the graph's code of today does with a run that has ended or waits: it is executed again against its
        record, without touching the world.

        Models and tools are answered from the journal and people from the inbox; what is not recorded stops it. Nothing
        is sent, nothing is written, nothing is paid. What a node does past its doors it does again.

        Raises `NotFound` (run, graph), `PolicyDenied` (roles `operator` and `admin` may), `Conflict` (it is under way,
        attached, or never came to a checkpoint; `ContentsPruned` where retention took its contents).
        """
        principal, run = self._directory.principal(by), await self._get(run_id, tenant)
        require_may_travel(principal, run.tenant.tenant_id, "replay a run")
        return await self._replayer.replay(run)

    def hand_back(self) -> None:
        """Stop this process's worker without waiting for its runs to reach a boundary: their nodes are cancelled, and
        the runs go back into the queue as soon as those have cleaned up. For who cannot wait while a runtime that is
        being closed drains. Without a worker here it does nothing."""
        if self._worker is not None:
            self._worker.hand_back()

    def lost_worker(self, error: BaseException) -> None:
        """This process's worker has died, which it should never do: whoever waits here is told."""
        self._lost_worker = error
        self._wake.ring()

    def register(self, graph: Any) -> Graph:
        """Make a compiled graph one that this process's worker can serve, and that `start` knows by name. One that is
        not governed yet is governed by `govern(graph)`, and what that raises is raised."""
        return self._registry.add(graph if is_governed(graph) else self._govern(graph))

    async def _admitted(self, request: RunRequest) -> RunHandle:
        with admission_span(run_id=request.run_id, tenant_id=request.tenant.tenant_id, graph_name=request.graph_name):
            run = await self.store.runs.admit(replace(request, trace_parent=trace_parent()))
        await reach(Mark.RUN_ADMITTED)
        self._wake.ring()
        return self._handle(run)

    def _holder(self, by: str | Principal, tenant_id: TenantId, run_id: RunId, *, lifting: bool) -> Principal:
        principal = self._directory.principal(by)
        require_may_hold(principal, tenant_id, run_id, lifting=lifting)
        return principal

    def _hydrate(self, graph: Any) -> Graph:
        return self._registry.latest(graph) if isinstance(graph, str) else self.register(graph)

    def _tenant_context(
        self, tenant_id: TenantId, user: str | Principal | None, policies: tuple[str, ...]
    ) -> TenantContext:
        version = self._doors.gate_for(policies).policy_version
        if user is None:
            return TenantContext(tenant_id=tenant_id, policy_version=version)
        principal = self._directory.principal(user)
        if not principal.may_act_for(tenant_id):
            raise NotFound(f"user {principal.user_id!r} does not belong to tenant {tenant_id!r}")
        return TenantContext(
            tenant_id=tenant_id,
            user_id=principal.user_id,
            roles=principal.roles,
            data_scopes=principal.data_scopes,
            policy_version=version,
        )

    async def _get(self, run_id: str, tenant: str) -> Run:
        return await self.store.runs.get(TenantId(tenant), RunId(uuid_text(run_id, what="run")))

    async def _served_by(self, run: Run) -> str | None:
        if run.attempt == 0:
            return None
        claimed = await self.store.events.latest(run.tenant.tenant_id, run.run_id, EventKind.RUN_CLAIMED)
        served_by = None if claimed is None else claimed.payload.get("graph_version")
        return served_by or run.graph_version  # an attached run's host begins with it, and nobody claims it

    async def _is_served(self, run: Run) -> bool:
        if run.status.final or run.attached:
            return True
        workers = await self.store.workers.alive()
        return not unserved([run.version], [graph for worker in workers for graph in worker.serves])

    async def _result(self, run: Run) -> RunResult:
        tenant_id = run.tenant.tenant_id
        budget = await self.store.ledger.state(tenant_id, BudgetId(run.run_id))
        asked: Sequence[Approval] = ()
        if run.status is RunStatus.INTERRUPTED:
            asked = await self.store.approvals.find(tenant_id, run_id=run.run_id)
        return RunResult(
            run_id=run.run_id,
            thread_id=run.thread_id,
            status=run.status,
            output=run.output,
            next_action=run.next_action if run.status is RunStatus.INTERRUPTED else None,
            approvals=tuple(asked),
            error=run.cause,
            usage=budget.spent,
            contents_pruned_at=run.contents_pruned_at,
        )

    def _handle(self, run: Run) -> RunHandle:
        return RunHandle(run.run_id, run.thread_id, run.thread_key, run.tenant.tenant_id, self)


def _thread_key(thread: str | None, run_id: RunId) -> str:
    if thread is None:
        return run_id
    if not thread or len(thread) > 500 or "\x00" in thread:
        raise InvalidRequest("a thread's key is a text of 1 to 500 characters without NUL")
    return thread


def _status(status: RunStatus | str) -> RunStatus:
    try:
        return RunStatus(status)
    except ValueError as error:
        raise InvalidRequest(f"{status!r} is not a status; use {', '.join(RunStatus)}") from error
