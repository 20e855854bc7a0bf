"""Specialists side by side: each with an id, a share of the budget and a deadline of its own."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from math import isinf
from typing import Any, Generic, Literal, TypeVar

from langgraph.errors import GraphInterrupt

from holdfast.contracts.classification import contained, translated
from holdfast.contracts.errors import (
    DeadlineExceeded,
    InvalidRequest,
    RunCancelled,
    RuntimeErrorRecord,
    StoreUnavailable,
)
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import BudgetState
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.scope import Scope, current_scope, entered
from holdfast.nodes.asking import merged
from holdfast.nodes.inside import fatal_as_itself
from holdfast.nodes.place import standing_apart
from holdfast.nodes.session import RunSession, session_of
from holdfast.policies.budget import share
from holdfast.telemetry.spans import node_span, traced_event

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Specialist(Generic[T]):
    """A child task of a supervisor."""

    name: str
    """Its name as an agent; unique in its fan-out."""
    run: Callable[[], Awaitable[T]]
    budget_share: float
    """The part of what is left of the supervisor's budget that it may use at most; above 0, at most 1."""
    deadline_seconds: float | None = None
    """How long it may take; never beyond the supervisor's deadline. None: as long as that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialistOutcome(Generic[T]):
    """What became of a specialist."""

    name: str
    task_id: str
    status: Literal["completed", "failed"]
    value: T | None = None
    error: RuntimeErrorRecord | None = None


async def fan_out(
    specialists: Sequence[Specialist[Any]], *, limit: int, allow_partial: bool = False
) -> list[SpecialistOutcome[Any]]:
    """Run the specialists, at most `limit` at once, and return their outcomes in the order given.

    The first failure raises and cancels the others, unless `allow_partial`: then it is an outcome like any other. A
    lost lease, a cancelled run and an unreachable store always raise. When specialists pause for a person the others
    finish first, and then the node pauses; what they have done is in the journal and is not done again.
    """
    scope, session = current_scope("fan_out"), session_of("fan_out")
    _check(specialists, limit)
    fan = _Fan(scope, session, asyncio.Semaphore(limit), allow_partial, _occurrence(scope))
    state = await session.ledger.state(scope.run.tenant_id, scope.budgets[0])
    outcomes, failure = await _side_by_side([fan.work(specialist, state) for specialist in specialists])
    if failure is not None:
        raise failure
    if pauses := [outcome for outcome in outcomes if isinstance(outcome, GraphInterrupt)]:
        raise merged(pauses)
    return [outcome for outcome in outcomes if isinstance(outcome, SpecialistOutcome)]


async def _side_by_side(works: Sequence[Coroutine[Any, Any, T]]) -> tuple[list[T], Exception | None]:
    """What each came to, or the first failure once the others have been cancelled and have ended."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as failures:
        return [], failures.exceptions[0]
    return [task.result() for task in tasks], None


def _check(specialists: Sequence[Specialist[Any]], limit: int) -> None:
    if limit < 1:
        raise InvalidRequest(f"a fan-out works on at least one specialist at a time, not {limit}")
    repeated = [name for name, count in Counter(one.name for one in specialists).items() if count > 1]
    if repeated:
        raise InvalidRequest(f"two specialists are named {repeated[0]!r}; a name tells whose money is spent")


def _occurrence(scope: Scope) -> int:
    """The n-th fan-out of this task, so that a second one has shares and ids of its own."""
    spot = (scope.locate().turn, "fan_out", "", "")
    scope.occurrences[spot] += 1
    return scope.occurrences[spot] - 1


@dataclass(frozen=True, slots=True)
class _Fan:
    scope: Scope
    session: RunSession
    slots: asyncio.Semaphore
    allow_partial: bool
    occurrence: int

    async def work(self, specialist: Specialist[T], state: BudgetState) -> "SpecialistOutcome[T] | GraphInterrupt":
        async with self.slots:
            own = await self._own_scope(specialist, state)
            task_id = own.locate().task_id
            try:
                with entered(own), node_span(own), standing_apart(_branch(task_id)):
                    value = await fatal_as_itself(_in_time(specialist, own))
            except GraphInterrupt as pause:
                return pause
            except (RunCancelled, StoreUnavailable):
                raise
            except Exception as error:
                if not self.allow_partial:
                    raise
                return self._failed(specialist.name, task_id, error)
            finally:
                own.closed = True
            return SpecialistOutcome(name=specialist.name, task_id=task_id, status="completed", value=value)

    async def _own_scope(self, specialist: Specialist[Any], state: BudgetState) -> Scope:
        scope, suffix = self.scope, f"/{specialist.name}#{self.occurrence}"
        limits = share(state, specialist.budget_share, deadline_seconds=specialist.deadline_seconds)
        site = scope.locate()
        facts = {"specialist": specialist.name, "share": str(specialist.budget_share)}
        event = traced_event(EventKind.BUDGET_OPENED, facts, node=scope.node, task_id=site.task_id + suffix)
        budget = await self.session.ledger.open_share(
            self.session.owner,
            parent=scope.budgets[0],
            share_key=site.task_id + suffix,
            limits=limits,
            event=event,
        )
        await reach(Mark.SHARE_OPENED)

        return replace(
            scope.below(suffix[1:]),
            agent_name=specialist.name,
            deadline=scope.deadline.child(specialist.deadline_seconds),
            limits=limits,
            budgets=(budget, *scope.budgets),
        )

    def _failed(self, name: str, task_id: str, error: Exception) -> "SpecialistOutcome[Any]":
        record = translated(error).record(run_id=self.scope.run.run_id, step_name=name)
        return SpecialistOutcome(name=name, task_id=task_id, status="failed", error=record)


def _branch(task_id: str) -> str:
    """The specialist and those above it, without the task: the same on whichever thread the node runs."""
    return task_id.partition("/")[2]


async def _in_time(specialist: Specialist[T], scope: Scope) -> T:
    remaining = scope.deadline.require(f"specialist {specialist.name!r}")
    try:
        async with asyncio.timeout(None if isinf(remaining) else remaining) as timer:
            with contained():
                return await specialist.run()
    except TimeoutError as error:
        if timer.expired():
            raise DeadlineExceeded(
                f"specialist {specialist.name!r} did not finish by its deadline", needed_for=specialist.name
            ) from error
        raise
