"""What is written beside checkpoints, in the same flush: events, questions, and calls that are opened or closed.

Encoded by whoever hands it in, so that what cannot be stored is refused there and then.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from holdfast.checkpoints.arrays import (
    BYTEA,
    INTEGER,
    NULL,
    TEXT,
    Array,
    bytes_field,
    columns,
    integer_field,
    text_field,
)
from holdfast.checkpoints.rows import Row
from holdfast.contracts.canonical import canonical
from holdfast.contracts.events import EventDraft

_EVENTS = {"slot": INTEGER, "attempt": INTEGER, "kind": TEXT, "node": TEXT, "task": TEXT, "call": TEXT, "trace": TEXT,
           "span": TEXT, "payload": BYTEA, "needs": TEXT}  # fmt: skip
_DOCUMENTS = {"slot": INTEGER, "doc": TEXT}
_CALLS = {"slot": INTEGER, "doc": TEXT, "content": BYTEA}
_NO_FACTS = bytes_field(b"{}")


class Records:
    """What one writer has to say beside checkpoints, to be written as one."""

    __slots__ = ("calls", "closes", "events", "opens", "questions", "size")

    def __init__(
        self,
        *,
        events: Sequence[Row] = (),
        questions: Sequence[Row] = (),
        opens: Sequence[Row] = (),
        closes: Sequence[Row] = (),
        calls: Sequence[str] = (),
    ) -> None:
        self.events = events
        self.questions = questions
        self.opens = opens
        self.closes = closes
        self.calls = calls
        """The ids of the calls that are opened or closed, whose writer is told which of them were."""
        self.size = sum(sum(map(len, row)) for rows in (events, questions, opens, closes) for row in rows)
        """In bytes."""

    def __len__(self) -> int:
        return len(self.events) + len(self.questions) + len(self.opens) + len(self.closes)

    def __add__(self, other: "Records") -> "Records":
        return Records(
            events=[*self.events, *other.events],
            questions=[*self.questions, *other.questions],
            opens=[*self.opens, *other.opens],
            closes=[*self.closes, *other.closes],
            calls=[*self.calls, *other.calls],
        )


NOTHING = Records()


def event_row(draft: EventDraft, attempt: int, *, needs: str | None = None, call_id: str | None = None) -> Row:
    """An event of an attempt, about `call_id` where that is given. With `needs`, the id of a call or of an approval, it
    is written only if that was opened, closed or asked by the same flush."""
    return (
        integer_field(attempt),
        text_field(draft.kind),
        _optional(draft.node),
        _optional(draft.task_id),
        _optional(call_id or draft.call_id),
        _optional(draft.trace_id),
        _optional(draft.span_id),
        bytes_field(canonical(draft.payload)) if draft.payload else _NO_FACTS,
        _optional(needs),
    )


def document(facts: Mapping[str, Any]) -> Row:
    """A row as JSON, whose keys are its columns."""
    return (text_field(json.dumps(facts, ensure_ascii=False)),)


def call_row(facts: Mapping[str, Any], content: bytes | None) -> Row:
    """The row of a call that is opened or closed: as JSON, and its request or response as it is."""
    return (*document(facts), NULL if content is None else bytes_field(content))


def record_columns(batch: Iterable[tuple[int, Records]]) -> Mapping[str, Array]:
    """The batch as parameters of the statement that writes it. Each part comes with the slot of its owner."""
    slotted = [(integer_field(slot), records) for slot, records in batch]
    parts: dict[str, tuple[Mapping[str, int], list[Row]]] = {
        "event": (_EVENTS, [(slot, *row) for slot, records in slotted for row in records.events]),
        "question": (_DOCUMENTS, [(slot, *row) for slot, records in slotted for row in records.questions]),
        "open": (_CALLS, [(slot, *row) for slot, records in slotted for row in records.opens]),
        "close": (_CALLS, [(slot, *row) for slot, records in slotted for row in records.closes]),
    }
    return {
        name: column for prefix, (types, rows) in parts.items() for name, column in columns(prefix, types, rows).items()
    }


def _optional(text: str | None) -> bytes:
    return NULL if text is None else text_field(text)
