"""How an attempt can end, and what is written of it."""

from dataclasses import dataclass
from typing import Any

from holdfast.contracts.errors import HoldfastError, RunCancelled, RuntimeErrorRecord
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.ports import Runs
from holdfast.contracts.runs import Owner, RunStatus
from holdfast.telemetry.spans import traced_event


@dataclass(frozen=True, slots=True)
class Completed:
    """The graph has run to its end."""

    output: Any


@dataclass(frozen=True, slots=True)
class Rested:
    """A person must decide; the run is parked."""

    questions: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The run ends here, with its cause and the state up to then."""

    error: HoldfastError
    step_name: str
    output: Any = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Someone wanted the run to stop, and it has."""

    error: RunCancelled
    output: Any = None


@dataclass(frozen=True, slots=True)
class Released:
    """The attempt is over, the run is not: another worker goes on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The lease is gone: nothing may be written."""


Ending = Completed | Rested | Failed | Cancelled | Released | Lost


async def record(runs: Runs, owner: Owner, ending: Ending) -> RunStatus | None:
    """Commit an ending. Returns the run's new status; None where nothing was written."""
    match ending:
        case Completed(output):
            event = _event(EventKind.RUN_COMPLETED)
            return await _finished(runs, owner, RunStatus.COMPLETED, output=output, cause=None, event=event)
        case Failed(error, step_name, output):
            cause = error.record(run_id=owner.run_id, step_name=step_name)
            event = _event(EventKind.RUN_FAILED, error_type=cause.error_type.value, step_name=step_name)
            return await _finished(runs, owner, RunStatus.FAILED, output=output, cause=cause, event=event)
        case Cancelled(error, output):
            cause = error.record(run_id=owner.run_id, step_name="run")
            event = _event(EventKind.RUN_CANCELLED, reason=error.message)
            return await _finished(runs, owner, RunStatus.CANCELLED, output=output, cause=cause, event=event)
        case Rested(questions):
            words = "a decision" if questions == 1 else f"{questions} decisions"
            event = _event(EventKind.RUN_INTERRUPTED, questions=questions)
            await reach(Mark.RUN_RESTING)
            status = await runs.rest(owner, next_action=f"{words} of a person; see the run's approvals", event=event)
            await reach(Mark.RUN_RESTED)
            return status
        case Released(reason):
            await reach(Mark.RUN_RELEASING)
            await runs.release(owner, event=_event(EventKind.RUN_RELEASED, reason=reason))
            await reach(Mark.RUN_RELEASED)
            return RunStatus.QUEUED
        case Lost():
            return None


async def _finished(
    runs: Runs, owner: Owner, status: RunStatus, *, output: Any, cause: RuntimeErrorRecord | None, event: EventDraft
) -> RunStatus:
    await reach(Mark.RUN_FINISHING)
    await runs.finish(owner, status, output=output, cause=cause, event=event)
    await reach(Mark.RUN_FINISHED)
    return status


def _event(kind: EventKind, **payload: Any) -> EventDraft:
    return traced_event(kind, payload)
