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


def event_row(draft: EventDraft, attempt: int, *, needs: str | None = None) -> Row:
    """An event of an attempt. With `needs`, the id of a call or of an approval, it is written only if that was opened,
    closed or asked by the same flush."""
    texts = (draft.kind, draft.node, draft.task_id, draft.call_id, draft.trace_id, draft.span_id)
    return (
        integer_field(attempt),
        *(_optional(text) for text in texts),
        bytes_field(canonical(draft.payload)),
        _optional(needs),
    )


def document(facts: Mapping[str, Any]) -> Row:
    """A row as JSON, whose keys are its columns."""
    return (text_field(json.dumps(facts, ensure_ascii=False)),)


def record_columns(batch: Iterable[tuple[int, Records]]) -> Mapping[str, Array]:
    """The batch as parameters of the statement that writes it. Each part comes with the slot of its owner."""
    slotted = [(integer_field(slot), records) for slot, records in batch]
    parts: dict[str, tuple[Mapping[str, int], list[Row]]] = {
        "event": (_EVENTS, [(slot, *row) for slot, records in slotted for row in records.events]),
        "question": (_DOCUMENTS, [(slot, *row) for slot, records in slotted for row in records.questions]),
        "open": (_DOCUMENTS, [(slot, *row) for slot, records in slotted for row in records.opens]),
        "close": (_DOCUMENTS, [(slot, *row) for slot, records in slotted for row in records.closes]),
    }
    return {
        name: column for prefix, (types, rows) in parts.items() for name, column in columns(prefix, types, rows).items()
    }


def _optional(text: str | None) -> bytes:
    return NULL if text is None else text_field(text)
