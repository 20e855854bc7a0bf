"""What happened, in order, per run. Events are records, not telemetry: without its event a change does not commit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from holdfast.contracts.ids import RunId, TenantId


class EventKind(StrEnum):
    """Every kind of event, `<noun>.<what happened>`."""

    RUN_ADMITTED = "run.admitted"
    RUN_CLAIMED = "run.claimed"
    RUN_RELEASED = "run.released"
    """An attempt ended without the run ending: shutdown, a lost lease, a transient failure."""
    RUN_INTERRUPTED = "run.interrupted"
    RUN_QUEUED = "run.queued"
    """A decision put the run back in the queue."""
    RUN_FORKED = "run.forked"
    """A copy of its history, up to a checkpoint, went to a new thread. Both runs' logs have it."""
    RUN_RESUMED = "run.resumed"
    """It had ended, and a new run goes on where it stopped. Both runs' logs have it."""
    RUN_CANCEL_REQUESTED = "run.cancel_requested"
    RUN_COMPLETED = "run.completed"
    RUN_FAILED = "run.failed"
    RUN_CANCELLED = "run.cancelled"
    RUN_HELD = "run.held"
    RUN_HOLD_LIFTED = "run.hold_lifted"
    RUN_PRUNED = "run.pruned"
    """Retention took out events of the run, checkpoints of its thread, or its contents."""
    NODE_STARTED = "node.started"
    NODE_COMPLETED = "node.completed"
    NODE_INTERRUPTED = "node.interrupted"
    NODE_FAILED = "node.failed"
    MODEL_INTENDED = "model.intended"
    MODEL_RETURNED = "model.returned"
    MODEL_FAILED = "model.failed"
    MODEL_REPLAYED = "model.replayed"
    MODEL_RETRIED = "model.retried"
    TOOL_INTENDED = "tool.intended"
    TOOL_RETURNED = "tool.returned"
    TOOL_FAILED = "tool.failed"
    TOOL_REPLAYED = "tool.replayed"
    TOOL_RETRIED = "tool.retried"
    TOOL_REFUSED = "tool.refused"
    """Unknown tool, bad input, a missing permission or a denial: nothing was sent."""
    MODEL_REFUSED = "model.refused"
    CALL_UNKNOWN = "call.unknown"
    CALL_RECONCILED = "call.reconciled"
    BUDGET_OPENED = "budget.opened"
    BUDGET_REFUSED = "budget.refused"
    APPROVAL_ASKED = "approval.asked"
    APPROVAL_DECIDED = "approval.decided"
    APPROVAL_EXPIRED = "approval.expired"
    APPROVAL_USED = "approval.used"
    APPROVAL_WITHDRAWN = "approval.withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDraft:
    """An event before the store gives it its number and time."""

    kind: EventKind
    node: str | None = None
    task_id: str | None = None
    call_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)
    """Facts, canonical JSON; no prompts, no answers, no arguments: those stay in the journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event of a run's log."""

    tenant_id: TenantId
    run_id: RunId
    seq: int
    """Counts from 1 within the run, without gaps."""
    at: datetime
    attempt: int
    kind: EventKind
    node: str | None
    task_id: str | None
    call_id: str | None
    trace_id: str | None
    span_id: str | None
    payload: Mapping[str, Any]
