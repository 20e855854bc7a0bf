"""Executes one attempt at a run: from a claim to an ending that is committed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.errors import GraphDrained, GraphRecursionError
from langgraph.runtime import RunControl
from langgraph.types import Command, GraphOutput

from holdfast.contracts.approvals import ApprovalStatus
from holdfast.contracts.classification import contained, translated
from holdfast.contracts.errors import (
    AttemptsExhausted,
    BudgetExceeded,
    DeadlineExceeded,
    HoldfastError,
    InvalidRequest,
    InvariantViolated,
    LeaseLost,
    NotFound,
    RunCancelled,
    StoreUnavailable,
)
from holdfast.contracts.ids import BudgetId
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.patience import patient
from holdfast.contracts.runs import Run
from holdfast.gateway.closing import written
from holdfast.nodes.session import RunSession, entered_session
from holdfast.policies import rulings
from holdfast.runtime import breakpoints, endings
from holdfast.runtime.breakpoints import has_breakpoints, refused, stands_before_one
from holdfast.runtime.endings import Cancelled, Completed, Ending, Failed, Lost, Released, Rested
from holdfast.runtime.entry import RUN_MARK, entry, run_config, run_context
from holdfast.runtime.leases import Hold
from holdfast.runtime.outputs import plain_output
from holdfast.runtime.registry import Graph, Registry
from holdfast.runtime.sessions import Doors, SaverFor
from holdfast.telemetry.logs import logger, run_logs
from holdfast.telemetry.spans import record_failure, record_run, run_span

log = logger(__name__)

_SAVER_GRACE_SECONDS = 10.0
_RUN_OUT = "the lease has run out"
_OUT_OF_REACH = "the database was out of reach"
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 2.0
"""Between two tries to give a run back."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    run: Run
    graph: Graph
    """Bound to the run's saver."""
    session: RunSession
    config: RunnableConfig
    control: RunControl


class Coordinator:
    """Owns the lifecycle of an attempt. It never raises for what happens inside a run: that becomes the ending."""

    def __init__(
        self, *, doors: Doors, registry: Registry, saver_for: SaverFor, assert_governed: Callable[[Graph], None]
    ) -> None:
        self._doors = doors
        self._registry = registry
        self._saver_for = saver_for
        self._assert_governed = assert_governed

    async def execute(self, hold: Hold, control: RunControl) -> None:
        """Run the graph of a claimed run until it ends, rests, is drained or is lost, and commit which it was."""
        try:
            with patient(hold.seconds_left):  # a database that has gone deaf holds no run past its lease
                try:
                    await self._execute(hold, control)
                except StoreUnavailable as error:
                    await self._give_back(hold, error)
        except LeaseLost as error:  # nothing can be written: another worker takes the run over, or has already
            _tell_lost(hold, str(error))
        except asyncio.CancelledError:
            if not hold.still_ours():  # and so whatever was to be concluded has not been
                _tell_lost(hold, _RUN_OUT)
            raise

    async def _execute(self, hold: Hold, control: RunControl) -> None:
        run = hold.claim.run
        if (unreadable := run.unreadable) is not None:
            await self._conclude_unread(hold, unreadable)
            return
        try:
            graph = self._hydrated(hold)
        except (NotFound, InvariantViolated) as error:
            await self._conclude(hold, None, _before_it_begins(hold) or Failed(error, "hydrate"))
            return
        if (ending := _before_it_begins(hold)) is not None:
            await self._conclude(hold, graph, ending)
            return
        await reach(Mark.RUN_HYDRATED)
        try:
            session = await self._doors.session(graph, run, hold.owner, still_ours=hold.still_ours)
        except asyncio.CancelledError as stop:
            await self._conclude(hold, graph, await _stopped(stop, hold))
            return
        identity = session.identity
        with (
            run_logs(identity, attempt=run.attempt),
            run_span(identity, graph_name=run.graph_name, attempt=run.attempt, link=run.trace_parent) as span,
        ):
            ending = await self._attempt(hold, _Attempt(run, graph, session, run_config(run), control))
            await self._conclude(hold, graph, ending)
            usage = (await self._doors.store.ledger.state(run.tenant.tenant_id, BudgetId(run.run_id))).spent
            record_run(span, identity, graph_name=run.graph_name, status=type(ending).__name__.lower(), usage=usage)
            if isinstance(ending, Failed):
                record_failure(span, ending.error)

    async def _conclude_unread(self, hold: Hold, unreadable: HoldfastError) -> None:
        """End a run of which nothing can be read, unless another worker may have the key for it."""
        ending = _before_it_begins(hold)
        if ending is None and isinstance(unreadable, StoreUnavailable):
            try:
                await asyncio.sleep(_LONGEST_PAUSE_SECONDS)  # given back at once, it would come back at once
            except asyncio.CancelledError as stop:
                ending = await _stopped(stop, hold)
            else:
                raise unreadable
        await self._conclude(hold, None, ending or Failed(unreadable, "claim"))

    async def _give_back(self, hold: Hold, trouble: StoreUnavailable) -> None:
        """The attempt can write nothing more, but its lease holds: as soon as the database answers again, the run goes
        back into the queue. Where it does not in time, the lease runs out by itself."""
        ending, pause = Released(_OUT_OF_REACH), _FIRST_PAUSE_SECONDS
        while hold.still_ours():
            try:
                await written(endings.record(self._doors.store.runs, hold.owner, ending))
            except StoreUnavailable:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                log.warning("attempt_given_back", run_id=hold.claim.run_id, epoch=hold.owner.epoch, reason=str(trouble))
                return
        _tell_lost(hold, str(trouble))

    def _hydrated(self, hold: Hold) -> Graph:
        """The graph of a run, bound to a saver of the owner's. Raises `NotFound` and `InvariantViolated`."""
        graph = self._registry.get(hold.claim.run.graph_name, hold.claim.served_by)
        self._assert_governed(graph)  # somebody may have changed its nodes since
        return graph.copy(update={"checkpointer": self._saver_for(hold.owner, graph)})

    async def _conclude(self, hold: Hold, graph: Graph | None, ending: Ending) -> None:
        """Commit an ending. A cancellation that comes now comes too late: it waits until this is written. Raises
        `LeaseLost` for a run that is ours no more."""
        if isinstance(ending, Lost):
            raise LeaseLost(_RUN_OUT, run_id=hold.claim.run_id, epoch=hold.owner.epoch)
        await written(self._recorded(hold, graph, ending))

    async def _recorded(self, hold: Hold, graph: Graph | None, ending: Ending) -> None:
        runs = self._doors.store.runs
        if isinstance(ending, Failed | Cancelled) and graph is not None:
            ending = replace(ending, output=await self._state(hold.claim.run, graph))
        try:
            await endings.record(runs, hold.owner, ending)
        except InvalidRequest as error:  # an output that the database will not have, for all that we make of it
            await endings.record(runs, hold.owner, Failed(error, "run"))

    async def _attempt(self, hold: Hold, attempt: _Attempt) -> Ending:
        try:
            async with asyncio.timeout(_backstop_seconds(attempt)):
                return await self._drive(attempt)
        except asyncio.CancelledError as stop:
            return await _stopped(stop, hold)
        except GraphDrained as drained:
            return Released(str(drained))
        except (LeaseLost, StoreUnavailable):
            raise
        except RunCancelled as stop:
            return Cancelled(stop)
        except Exception as error:  # noqa: BLE001  # a run's failure is its ending, whatever raised it
            return Failed(_failure(error, attempt), attempt.session.step_of(error))

    async def _drive(self, attempt: _Attempt) -> Ending:
        """Invoke the graph; whenever it pauses for what a person has decided already, go on at once.

        A run that is taken over is first invoked without answers, even where some are known: LangGraph may have
        stored an answer before the crash, and would give a second copy of it to the task's next interrupt. What is
        asked again in this attempt is certainly unanswered, and is resumed by id.
        """
        given: dict[str, Any] = {}
        value = await self._entry(attempt)
        if value is None and (stop := await self._stop_at_breakpoint(attempt, entering=True)) is not None:
            return stop
        if value is None and attempt.run.parked:
            snapshot = await attempt.graph.aget_state(attempt.config)
            given = await self._answers(attempt.run, {interrupt.id for interrupt in snapshot.interrupts})
            value = Command(resume=given) if given else None
        while True:
            output = await self._invoke(attempt, value)
            if not output.interrupts:
                stop = await self._stop_at_breakpoint(attempt, entering=False)
                return stop or Completed(plain_output(output.value))
            answers = await self._answers(attempt.run, {interrupt.id for interrupt in output.interrupts})
            if repeated := given.keys() & answers.keys():
                raise InvariantViolated(f"interrupt {min(repeated)} was answered and asked again under the same id")
            if not answers:
                return Rested(len(output.interrupts))
            given |= answers
            value = Command(resume=answers)

    async def _entry(self, attempt: _Attempt) -> Any:
        """What the graph is invoked with: None where it goes on from the thread's latest checkpoint."""
        saver = attempt.graph.checkpointer
        assert isinstance(saver, BaseCheckpointSaver)
        return await entry(self._doors.store.runs, attempt.run, saver, attempt.config)

    async def _invoke(self, attempt: _Attempt, value: Any) -> GraphOutput[Any]:
        with entered_session(attempt.session), contained():  # the graph's reducers have no node around them
            return await attempt.graph.ainvoke(
                value,
                attempt.config,
                context=run_context(attempt.graph, attempt.run),
                durability="sync",
                control=attempt.control,
                version="v2",
            )

    async def _stop_at_breakpoint(self, attempt: _Attempt, *, entering: bool) -> Ending | None:
        """Rest where the graph has a breakpoint and nobody has given leave yet; None: go on, or there is none."""
        if not has_breakpoints(attempt.graph):
            return None
        inbox, owner = self._doors.store.approvals, attempt.session.owner
        snapshot = await attempt.graph.aget_state(attempt.config)
        leave = await breakpoints.leave_at(inbox, owner, snapshot)
        if leave is not None and leave.status is not ApprovalStatus.PENDING:
            return Cancelled(RunCancelled("a breakpoint was not passed")) if refused(leave) else None
        if not snapshot.next or (entering and leave is None and not stands_before_one(attempt.graph, snapshot)):
            return None
        await breakpoints.ask_leave(inbox, owner, snapshot, expires_in_seconds=attempt.session.approval_expires_seconds)
        return Rested(1)

    async def _answers(self, run: Run, asked: set[str]) -> dict[str, Any]:
        # What a run asks that goes on for another may have been answered while that one still ran.
        whose = {"run_id": run.run_id} if run.resumed_from is None else {"thread_key": run.thread_key}
        approvals = await self._doors.store.approvals.find(
            run.tenant.tenant_id, pending_only=False, limit=10_000, **whose
        )
        return {
            approval.interrupt_id: rulings.answer(approval)
            for approval in approvals
            if approval.interrupt_id in asked
            and approval.status not in (ApprovalStatus.PENDING, ApprovalStatus.WITHDRAWN)
        }

    async def _state(self, run: Run, graph: Graph) -> Any:
        """The thread's state up to now, for a run that does not complete. One that cannot be read keeps no run from
        ending."""
        try:
            with contained():
                snapshot = await graph.aget_state(run_config(run))
        except Exception as error:  # noqa: BLE001  # the graph's own reducers and schemas have a say in it
            log.warning("state_not_read", run_id=run.run_id, reason=translated(error).message)
            return None
        mark = (snapshot.metadata or {}).get(RUN_MARK)
        return plain_output(snapshot.values) if mark == run.run_id else None


def _tell_lost(hold: Hold, reason: str) -> None:
    log.warning("attempt_lost", run_id=hold.claim.run_id, epoch=hold.owner.epoch, reason=reason)


def _before_it_begins(hold: Hold) -> Ending | None:
    """Why a claimed run is over without another step."""
    run = hold.claim.run
    if hold.cancel_requested:
        return Cancelled(_asked_to_stop(run))
    if run.takeovers < run.max_attempts:
        return None
    error = AttemptsExhausted(
        f"the run is dead: {run.max_attempts} workers in a row were lost while they worked on it, so no further one is "
        "risked; its state is kept",
        attempts=run.max_attempts,
    )
    return Failed(error, "claim")


async def _stopped(stop: asyncio.CancelledError, hold: Hold) -> Ending:
    """The attempt's task was cancelled: by a wish to stop the run, a lost lease, or the end of the worker."""
    # LangGraph hands its unfinished checkpoint flush over this way; the lease must outlive it.
    if flushes := [item for item in stop.args if isinstance(item, asyncio.Task)]:
        # Not awaited for its result: it may have failed, or have been cancelled itself.
        done, _ = await asyncio.wait(flushes, timeout=_SAVER_GRACE_SECONDS)
        for flush in done:
            flush.cancelled() or flush.exception()
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
    if not hold.still_ours():
        return Lost()
    if hold.cancel_requested:
        return Cancelled(_asked_to_stop(hold.claim.run))
    return Released("the worker is shutting down")


def _asked_to_stop(run: Run) -> RunCancelled:
    return RunCancelled(f"run {run.run_id} was asked to stop")


def _backstop_seconds(attempt: _Attempt) -> float:
    """The middleware ends every node by the deadline; this ends an attempt that hangs outside its nodes."""
    return attempt.session.deadline.remaining_seconds() + attempt.session.cleanup_seconds + _SAVER_GRACE_SECONDS


def _failure(error: Exception, attempt: _Attempt) -> HoldfastError:
    failure = translated(error)
    if isinstance(error, TimeoutError) and attempt.session.deadline.expired():
        return DeadlineExceeded("the run's deadline has passed while it was between nodes")
    if isinstance(error, GraphRecursionError):
        return BudgetExceeded(
            f"the graph took more supersteps than the run may take steps ({attempt.run.limits.max_steps})",
            limit_name="max_steps",
            limit=attempt.run.limits.max_steps,
        )
    return failure
