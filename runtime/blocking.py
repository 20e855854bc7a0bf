"""The same runtime for scripts without a loop: every call waits for its answer."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from anyio.from_thread import BlockingPortal

from holdfast.contracts.approvals import Approval, DecisionType
from holdfast.contracts.chain import Verification
from holdfast.contracts.events import Event
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import Run, RunResult, RunStatus
from holdfast.contracts.tenancy import Principal
from holdfast.runtime.registry import Graph
from holdfast.runtime.replay import ReplayReport
from holdfast.runtime.runtime import RunHandle, RunReport, Runtime
from holdfast.runtime.travel import HistoryEntry

T = TypeVar("T")


class _Steps(Generic[T]):
    """What a generator yields, each in a task that can be stopped: whoever waits for it may be interrupted."""

    def __init__(self, found: AsyncGenerator[T, None]) -> None:
        self._found = found
        self._step: asyncio.Task[T | None] | None = None

    async def next(self) -> T | None:
        """The next one; None after the last."""
        self._step = asyncio.create_task(self._next())
        return await self._step

    async def close(self) -> None:
        """End the generator, also while it is asked for the next one."""
        if self._step is not None and not self._step.done():
            self._step.cancel()
            await asyncio.wait({self._step})
        await self._found.aclose()

    async def _next(self) -> T | None:
        return await anext(self._found, None)


@dataclass(frozen=True, slots=True)
class BlockingRun:
    """A run, for code that waits."""

    handle: RunHandle
    _portal: BlockingPortal = field(repr=False)

    @property
    def id(self) -> str:
        """The run's id."""
        return self.handle.run_id

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait until the run rests; see `RunHandle.result`."""
        return self._portal.call(self.handle.result, timeout)


class BlockingRuntime:
    """`Runtime` behind a thread of its own. Made by `holdfast.open_blocking_runtime()`; see `Runtime` for the words."""

    def __init__(self, runtime: Runtime, portal: BlockingPortal) -> None:
        self._runtime = runtime
        self._portal = portal

    def start(
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
    ) -> BlockingRun:
        """Admit a run; see `Runtime.start`."""
        start = partial(
            self._runtime.start,
            graph,
            input,
            tenant=tenant,
            user=user,
            thread=thread,
            limits=limits,
            context=context,
            run_id=run_id,
        )
        return self._running(self._portal.call(start))

    def run(self, run_id: str, *, tenant: str) -> BlockingRun:
        """A run that was admitted, by this process or another; see `Runtime.run`."""
        return self._running(self._portal.call(partial(self._runtime.run, run_id, tenant=tenant)))

    def runs(
        self, *, tenant: str, thread: str | None = None, status: RunStatus | str | None = None, limit: int = 100
    ) -> Sequence[Run]:
        """The tenant's runs, newest first; see `Runtime.runs`."""
        return self._portal.call(partial(self._runtime.runs, tenant=tenant, thread=thread, status=status, limit=limit))

    def wait(self, run_id: str, *, tenant: str, timeout: float | None = None) -> RunResult:
        """Wait until a run rests; see `Runtime.wait`."""
        return self._portal.call(partial(self._runtime.wait, run_id, tenant=tenant, timeout=timeout))

    def show(self, run_id: str, *, tenant: str) -> RunReport:
        """A run with its budget, calls and approvals; see `Runtime.show`."""
        return self._portal.call(partial(self._runtime.show, run_id, tenant=tenant))

    def events(self, run_id: str, *, tenant: str, after: int = 0, limit: int = 10_000) -> Sequence[Event]:
        """The run's events after the number `after`; see `Runtime.events`."""
        return self._portal.call(partial(self._runtime.events, run_id, tenant=tenant, after=after, limit=limit))

    def follow(
        self, run_id: str, *, tenant: str, after: int = 0, until: Literal["end", "rest"] = "end"
    ) -> Iterator[Event]:
        """The run's events as they commit, each waited for; see `Runtime.follow`."""
        return self._one_by_one(self._runtime.follow(run_id, tenant=tenant, after=after, until=until))

    def verify_events(self, run_id: str, *, tenant: str) -> Verification:
        """Whether the run's events are those that were written; see `Runtime.verify_events`."""
        return self._portal.call(partial(self._runtime.verify_events, run_id, tenant=tenant))

    def verify_all_events(self, *, tenant: str) -> Iterator[Verification]:
        """The same for every run of the tenant, one after the other; see `Runtime.verify_all_events`."""
        return self._one_by_one(self._runtime.verify_all_events(tenant=tenant))

    def approvals(
        self, *, tenant: str, run_id: str | None = None, thread: str | None = None, pending_only: bool = True
    ) -> Sequence[Approval]:
        """What the tenant's people are asked, oldest first; see `Runtime.approvals`."""
        wanted = partial(
            self._runtime.approvals, tenant=tenant, run_id=run_id, thread=thread, pending_only=pending_only
        )
        return self._portal.call(wanted)

    def decide(
        self,
        approval_id: str,
        decision: DecisionType,
        *,
        by: str | Principal,
        args: Mapping[str, Any] | None = None,
        message: str | None = None,
        value: Any = None,
    ) -> Approval:
        """Decide what a person was asked; see `Runtime.decide`."""
        decide = partial(self._runtime.decide, approval_id, decision, by=by, args=args, message=message, value=value)
        return self._portal.call(decide)

    def cancel(self, run_id: str, *, tenant: str, by: str | Principal, reason: str = "") -> Run:
        """Ask a run to stop; see `Runtime.cancel`."""
        return self._portal.call(partial(self._runtime.cancel, run_id, tenant=tenant, by=by, reason=reason))

    def hold(self, run_id: str, *, tenant: str, by: str | Principal, reason: str = "") -> Run:
        """Keep a run from retention; see `Runtime.hold`."""
        return self._portal.call(partial(self._runtime.hold, run_id, tenant=tenant, by=by, reason=reason))

    def lift(self, run_id: str, *, tenant: str, by: str | Principal, reason: str = "") -> Run:
        """End what `hold` began; see `Runtime.lift`."""
        return self._portal.call(partial(self._runtime.lift, run_id, tenant=tenant, by=by, reason=reason))

    def state(self, thread: str, *, tenant: str, at: str | None = None, by: str | Principal | None = None) -> Any:
        """The state that a thread has reached, or had at a checkpoint; see `Runtime.state`."""
        return self._portal.call(partial(self._runtime.state, thread, tenant=tenant, at=at, by=by))

    def history(
        self, thread: str, *, tenant: str, by: str | Principal, limit: int = 100, before: str | None = None
    ) -> Sequence[HistoryEntry]:
        """The checkpoints of a thread, newest first; see `Runtime.history`."""
        history = partial(self._runtime.history, thread, tenant=tenant, by=by, limit=limit, before=before)
        return self._portal.call(history)

    def fork(
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
    ) -> BlockingRun:
        """Go on from a checkpoint on a new thread; see `Runtime.fork`."""
        fork = partial(
            self._runtime.fork, source, tenant=tenant, by=by, at=at, thread=thread, values=values, limits=limits
        )
        return self._running(self._portal.call(fork))

    def resume(self, run_id: str, *, tenant: str, by: str | Principal, limits: Limits | None = None) -> BlockingRun:
        """Go on where a run failed or was cancelled, as a new run; see `Runtime.resume`."""
        resume = partial(self._runtime.resume, run_id, tenant=tenant, by=by, limits=limits)
        return self._running(self._portal.call(resume))

    def replay(self, run_id: str, *, tenant: str, by: str | Principal) -> ReplayReport:
        """What the graph's code of today does with a run, without touching the world; see `Runtime.replay`."""
        return self._portal.call(partial(self._runtime.replay, run_id, tenant=tenant, by=by))

    def register(self, graph: Any) -> Graph:
        """Make a graph one that this process's worker can serve; see `Runtime.register`."""
        return self._portal.call(self._runtime.register, graph)

    def _one_by_one(self, found: AsyncGenerator[T, None]) -> Iterator[T]:
        steps = _Steps(found)
        try:
            while (one := self._portal.call(steps.next)) is not None:
                yield one
        finally:
            self._portal.call(steps.close)

    def _running(self, handle: RunHandle) -> BlockingRun:
        return BlockingRun(handle, self._portal)
