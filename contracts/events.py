"""What happened, in order, per run. Events are records, not telemetry: without its event a change does not commit."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from struct import pack
from typing import Any
from uuid import UUID

from holdfast.contracts.ids import RunId, TenantId

GENESIS = bytes(32)
"""What stands before a run's first event in its chain."""
_ERA = datetime(2000, 1, 1, tzinfo=UTC)
_ABSENT = pack("!i", -1)


class EventKind(StrEnum):
    """Every kind of event, `<noun>.<what happened>`."""

    RUN_ADMITTED = "run.admitted"
    RUN_CLAIMED = "run.claimed"
    RUN_RELEASED = "run.released"
    """An attempt ended without the run ending: shutdown, a lost lease, a transient failure."""
    RUN_INTERRUPTED = "run.interrupted"
    RUN_QUEUED = "run.queued"
    """A decision put the run back in the queue."""
    RUN_CANCEL_REQUESTED = "run.cancel_requested"
    RUN_COMPLETED = "run.completed"
    RUN_FAILED = "run.failed"
    RUN_CANCELLED = "run.cancelled"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An event as its run's chain has it. Its payload is unread: what was hashed are bytes."""

    seq: int
    at: datetime
    attempt: int
    kind: str
    node: str | None
    task_id: str | None
    call_id: str | None
    trace_id: str | None
    span_id: str | None
    payload: bytes
    hash: bytes
    """SHA-256 of the hash before it and of this event: `chained`."""


def chained(previous: bytes, run_id: RunId, link: Link) -> bytes:
    """The hash that `link` must have as the event of `run_id` after the one whose hash is `previous`.

    docs/events.md has the encoding in words. It is the database's too, which has its own: neither knows the other.
    """
    fields = (
        UUID(run_id).bytes,
        pack("!q", link.seq),
        pack("!q", (link.at - _ERA) // timedelta(microseconds=1)),
        pack("!i", link.attempt),
        _text(link.kind),
        _text(link.node),
        _text(link.task_id),
        None if link.call_id is None else UUID(link.call_id).bytes,
        _text(link.trace_id),
        _text(link.span_id),
        link.payload,
    )
    return hashlib.sha256(previous + b"".join(map(_field, fields))).digest()


def _text(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


def _field(value: bytes | None) -> bytes:
    return _ABSENT if value is None else pack("!i", len(value)) + value
