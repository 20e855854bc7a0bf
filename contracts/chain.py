"""How a run's events hang together: each carries the hash of the one before it with itself, the head that of the last.

docs/events.md has the bytes that are hashed. The database computes the same in SQL: neither knows the other.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from struct import pack
from uuid import UUID

from holdfast.contracts.ids import RunId

GENESIS = bytes(32)
"""What stands before a run's first event."""
_ERA = datetime(2000, 1, 1, tzinfo=UTC)
_ABSENT = pack("!i", -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An event as its run's chain has it. Its payload is unread: what was hashed are bytes."""

    seq: int
    at: datetime | None
    """None: an instant that no event of ours can have."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where a run's chain ends, where what is left of it begins, and what rows there are at that moment."""

    seq: int
    """The number of the last event."""
    hash: bytes
    """Its hash."""
    anchor_seq: int
    """The number of the last event that retention took out; 0: none."""
    anchor_hash: bytes
    """Its hash, to which the first event that is left is chained."""
    newest: int | None
    """The greatest number that a row has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What became of verifying a run's events."""

    run_id: RunId
    events: int
    """Events that follow from each other, from the anchor on."""
    head: Head | None
    """As it was when the verification began; None: the run has lost it."""
    broken_at: int | None = None
    """The number of the first event that is altered, missing or put in; None where it is the head."""
    broken: str | None = None
    """What is wrong there."""

    @property
    def ok(self) -> bool:
        """Whether the events are what was written."""
        return self.broken is None


def chained(previous: bytes, run_id: RunId, link: Link) -> bytes:
    """The hash that `link` must have as the event of `run_id` after the one whose hash is `previous`."""
    fields = (
        UUID(run_id).bytes,
        pack("!q", link.seq),
        None if link.at is None else pack("!q", (link.at - _ERA) // timedelta(microseconds=1)),
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
