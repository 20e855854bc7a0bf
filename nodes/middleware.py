"""What stands around every node: is the run still ours, wanted, in time and in budget? Then its scope, its span, the
node, and what became of it.

A step is a task of a leaf node or of an error handler. A node that is itself a graph is no step (its own nodes are),
nor is a conditional edge (it belongs to its node's task); both have a scope. A cancelled attempt writes no event of
the node: the run's own event says so.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from math import isinf
from typing import Any

import structlog
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp, GraphDrained, GraphInterrupt

from holdfast.contracts.classification import contained, first_of_ours, type_of
from holdfast.contracts.deadline import Deadline
from holdfast.contracts.errors import DeadlineExceeded, HoldfastError, LeaseLost, NotGoverned, StoreUnavailable
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.patience import Patience, patient
from holdfast.contracts.scope import Scope, entered, scope_here
from holdfast.nodes.asking import ask_for, pause_in, settle_host_answers
from holdfast.nodes.inside import fatal_as_itself
from holdfast.nodes.mismatch import require_no_mismatch
from holdfast.nodes.place import Place, is_retry, standing_apart, task_id_of
from holdfast.nodes.session import RunSession, session_here
from holdfast.nodes.underway import collecting
from holdfast.telemetry.spans import node_span, traced_event

_log = structlog.get_logger(__name__)
_RECORDING_SECONDS = 5.0
_holds_slot: ContextVar[bool] = ContextVar("holdfast_holds_slot", default=False)


async def around(place: Place, config: RunnableConfig, work: Callable[[], Awaitable[Any]]) -> Any:
    """Do `work`, the body of the node at `place`, under the terms of the run it belongs to."""
    session = _session_for(place)
    async with _slot(session, place):
        scope = _open_scope(session, place, config)
        try:
            _require_go(session, place)
            with entered(scope), node_span(scope):
                return await _step(session, place, config, scope, work)
        except HoldfastError as error:
            session.failed_at(place.node, error)  # a node that was not let go on has failed too
            raise
        finally:
            scope.closed = True


async def _step(
    session: RunSession, place: Place, config: RunnableConfig, scope: Scope, work: Callable[[], Awaitable[Any]]
) -> Any:
    task_id = task_id_of(config)
    if place.counted:
        await _begin(session, place, task_id)
    if session.owner.attached and place.kind != "branch":  # its node's task has settled them
        await settle_host_answers(session, config)
    try:
        result = await fatal_as_itself(
            _in_time(session, scope, place, partial(_agreeing, session, config, scope, work))
        )
    except GraphBubbleUp as signal:
        await _signalled(session, place, task_id, signal)
        raise
    except Exception as error:
        if (pause := pause_in(error)) is not None:
            await _signalled(session, place, task_id, pause)
            raise pause from error
        ours = first_of_ours(error) if isinstance(error, BaseExceptionGroup) else None
        await _failed(session, place, task_id, ours or error)
        if ours is not None:
            raise ours from error
        raise
    await _tell(session, place, task_id, EventKind.NODE_COMPLETED)
    await reach(Mark.NODE_COMPLETED)
    return result


def _session_for(place: Place) -> RunSession:
    session = session_here()
    if session is None:
        raise NotGoverned(
            f"node {place.node!r} of graph {place.graph!r} was run outside a governed run. Run the graph with "
            "Runtime.start(...), or await graph.ainvoke(...) inside `async with open_runtime():`",
            action=place.node,
            rule="session.absent",
        )
    return session


def _require_go(session: RunSession, place: Place) -> None:
    session.cancellation.require_wanted(session.owner.run_id)
    if not session.still_ours():
        raise LeaseLost(
            f"run {session.owner.run_id} is no longer ours, so node {place.node!r} was not started",
            run_id=session.owner.run_id,
            epoch=session.owner.epoch,
        )
    outer, what = scope_here(), f"node {place.node!r}"
    if outer is not None:
        outer.require_open(what)  # called from a thread that its own node left behind
    (outer or session).deadline.require(what)


def _open_scope(session: RunSession, place: Place, config: RunnableConfig) -> Scope:
    """The node's scope. Below a specialist it has the specialist's budget and deadline."""
    outer = scope_here()
    terms = outer or session
    return Scope(
        run=session.identity,
        owner=session.owner,
        tenant=session.tenant,
        graph_name=session.graph_name,
        node=place.node,
        agent_name=_agent_name(place, config, outer),
        deadline=terms.deadline,
        limits=terms.limits,
        budgets=terms.budgets,
        autonomy=session.autonomy,
        models=session.models,
        default_model=session.default_model,
        locate=session.locator(session.owner.thread_id, place, config),
        still_ours=session.still_ours,
        apart=standing_apart,
        fork=session.fork,
    )


def _agent_name(place: Place, config: RunnableConfig, outer: Scope | None) -> str:
    """Whose calls these are: what LangChain names the agent, or the specialist or agent around it, or the node."""
    if named := (config.get("metadata") or {}).get("lc_agent_name"):
        return str(named)
    return outer.agent_name if outer is not None and outer.agent_name != outer.node else place.node


@asynccontextmanager
async def _slot(session: RunSession, place: Place) -> AsyncIterator[None]:
    """One of the run's working places. What runs inside a node that has one needs none of its own."""
    if session.node_slots is None or not place.leaf or _holds_slot.get():
        yield
        return
    async with session.node_slots:
        token = _holds_slot.set(True)
        try:
            yield
        finally:
            _holds_slot.reset(token)


async def _begin(session: RunSession, place: Place, task_id: str) -> None:
    await reach(Mark.NODE_STARTING)
    event = _event(place, task_id, EventKind.NODE_STARTED, {"kind": place.kind, "graph": place.graph})
    if await session.runs.begin_step(session.owner, node=place.node, task_id=task_id, event=event):
        session.cancellation.request(reason="its cancellation was requested")
        session.cancellation.require_wanted(session.owner.run_id)
    await reach(Mark.NODE_STARTED)


async def _in_time(session: RunSession, scope: Scope, place: Place, work: Callable[[], Awaitable[Any]]) -> Any:
    """The result of `work`, or `DeadlineExceeded`. Whatever `work` has started is stopped before this returns."""
    with collecting() as started, patient(_until_recorded(session, scope)):
        task = asyncio.ensure_future(_awaited(work))
        task.add_done_callback(_look_at)
        try:
            await asyncio.wait({task}, timeout=_seconds(scope.deadline))
            if not task.done():
                raise DeadlineExceeded(
                    f"the deadline passed while node {place.node!r} was at work", needed_for=place.node
                )
            return task.result()
        finally:
            scope.closed = True
            await _stopped({task, *started.tasks}, session.cleanup_seconds, place)


def _until_recorded(session: RunSession, scope: Scope) -> Patience:
    """The store is not waited for past the deadline, and what clean-up takes: what came of a call that was under way
    is still to be written."""
    grace = max(session.cleanup_seconds, _RECORDING_SECONDS)
    return lambda: scope.deadline.remaining_seconds() + grace


async def _agreeing(
    session: RunSession, config: RunnableConfig, scope: Scope, work: Callable[[], Awaitable[Any]]
) -> Any:
    """The result of `work`, which must have asked again for all that it did when it was run before."""
    result = await work()
    if session.owner.attempt > 1 or is_retry(config):
        await require_no_mismatch(session, scope, scope.locate())
    return result


async def _awaited(work: Callable[[], Awaitable[Any]]) -> Any:
    with contained():
        return await work()


def _seconds(deadline: Deadline) -> float | None:
    remaining = deadline.remaining_seconds()
    return None if isinf(remaining) else remaining


async def _stopped(tasks: set[asyncio.Future[Any]], seconds: float, place: Place) -> None:
    """Cancel what still runs and give it a bounded time to clean up. LangGraph does not wait at all."""
    running = {task for task in tasks if not task.done()}
    for task in running:
        task.cancel()
    if running:
        _, stubborn = await asyncio.wait(running, timeout=seconds)
        if stubborn:
            _log.warning("a node did not stop when it was cancelled", node=place.node, waited_seconds=seconds)


def _look_at(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def _signalled(session: RunSession, place: Place, task_id: str, signal: GraphBubbleUp) -> None:
    """LangGraph's control flow is no failure: a pause is asked in the inbox, a command to the parent is an end."""
    match signal:
        case GraphInterrupt():
            session.interrupted = True
            await ask_for(session, signal, node=place.node, task_id=task_id)
            await _tell(session, place, task_id, EventKind.NODE_INTERRUPTED)
        case GraphDrained():
            pass
        case _:
            await _tell(session, place, task_id, EventKind.NODE_COMPLETED)


async def _failed(session: RunSession, place: Place, task_id: str, error: Exception) -> None:
    """Record the failure. The exception itself stays as it is, so that the graph's own handlers and retries see it.
    Where the record cannot be written the run cannot be ended either, and the failure that came first is told."""
    facts: dict[str, Any] = {
        "error_type": type_of(error).value,
        "exception": f"{type(error).__module__}.{type(error).__qualname__}",
    }
    session.failed_at(place.node, error)
    if isinstance(error, HoldfastError):
        facts["message"] = error.message
    with suppress(LeaseLost, StoreUnavailable):
        await _tell(session, place, task_id, EventKind.NODE_FAILED, facts)


async def _tell(
    session: RunSession, place: Place, task_id: str, kind: EventKind, facts: dict[str, Any] | None = None
) -> None:
    if place.counted:
        await session.events.stage(session.owner, task_id, [_event(place, task_id, kind, facts or {})])


def _event(place: Place, task_id: str, kind: EventKind, facts: dict[str, Any]) -> EventDraft:
    return traced_event(kind, facts, node=place.node, task_id=task_id)
