"""What is written beside checkpoints, in the same flush: events, questions, and calls that are opened or closed.

Encoded by whoever hands it in, so that what cannot be stored is refused there and then.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from holdfast.checkpoints.arrays import (
    BIGINT,
    BOOLEAN,
    BYTEA,
    INTEGER,
    NULL,
    TEXT,
    UUIDS,
    Columns,
    Encoded,
    bigint_field,
    boolean_field,
    bytes_field,
    integer_field,
    json_field,
    text_field,
    uuid_field,
)
from holdfast.checkpoints.moves import Move
from holdfast.checkpoints.rows import Row
from holdfast.contracts.canonical import canonical
from holdfast.contracts.events import EventDraft, EventKind

_EVENTS = Columns("event", slot=INTEGER, attempt=INTEGER, kind=TEXT, node=TEXT, task=TEXT, call=UUIDS, trace=TEXT,
                  span=TEXT, payload=BYTEA, question=UUIDS)  # fmt: skip
_QUESTIONS = Columns("question", slot=INTEGER, doc=TEXT)
_OPENS = Columns("open", slot=INTEGER, call=UUIDS, thread=UUIDS, key=TEXT, namespace=TEXT, task=TEXT, node=TEXT,
                 checkpoint=TEXT, kind=TEXT, name=TEXT, occurrence=INTEGER, fork=TEXT, agent=TEXT, digest=TEXT,
                 request=BYTEA, effect=TEXT, idempotent=BOOLEAN, budgets=TEXT, reserved=TEXT, model=TEXT, prompt=TEXT,
                 policy=TEXT, timeout=BIGINT)  # fmt: skip
_CLOSES = Columns("close", slot=INTEGER, call=UUIDS, thread=UUIDS, budgets=TEXT, status=TEXT, used=TEXT, response=BYTEA,
                  error_type=TEXT, error_message=TEXT, error_facts=TEXT, latency=BIGINT)  # fmt: skip
_NO_FACTS = bytes_field(b"{}")
_STEP = text_field(EventKind.NODE_STARTED)


class Records:
    """What one writer has to say beside checkpoints, to be written as one."""

    __slots__ = ("closes", "events", "moves", "opens", "questions", "size")

    def __init__(
        self,
        *,
        events: Sequence[Row] = (),
        questions: Sequence[Row] = (),
        opens: Sequence[Row] = (),
        closes: Sequence[Row] = (),
        moves: Sequence[Move] = (),
    ) -> None:
        self.events = events
        self.questions = questions
        self.opens = opens
        self.closes = closes
        self.moves = moves
        """One for each call that is opened or closed."""
        self.size = sum(sum(map(len, row)) for rows in (events, questions, opens, closes) for row in rows)
        """In bytes."""

    @property
    def steps(self) -> bool:
        """Whether tasks of the graph begin."""
        return any(event[1] == _STEP for event in self.events)

    def __len__(self) -> int:
        return len(self.events) + len(self.questions) + len(self.opens) + len(self.closes)

    def __add__(self, other: "Records") -> "Records":
        return Records(
            events=[*self.events, *other.events],
            questions=[*self.questions, *other.questions],
            opens=[*self.opens, *other.opens],
            closes=[*self.closes, *other.closes],
            moves=[*self.moves, *other.moves],
        )


NOTHING = Records()


def event_row(draft: EventDraft, attempt: int, *, question: str | None = None, call_id: str | None = None) -> Row:
    """An event of an attempt, about `call_id` where that is given. With `question`, the id of an approval, it is
    written only if that was asked by the same flush."""
    call_id = call_id or draft.call_id
    return (
        integer_field(attempt),
        text_field(draft.kind),
        _optional(draft.node),
        _optional(draft.task_id),
        NULL if call_id is None else uuid_field(call_id),
        _optional(draft.trace_id),
        _optional(draft.span_id),
        bytes_field(canonical(draft.payload)) if draft.payload else _NO_FACTS,
        NULL if question is None else uuid_field(question),
    )


def question_row(facts: Mapping[str, Any]) -> Row:
    """The row of what a person is asked, as JSON whose keys are its columns."""
    return (json_field(facts),)


def open_row(facts: Mapping[str, Any]) -> Row:
    """The row of a call that is opened."""
    return (
        uuid_field(facts["call_id"]),
        uuid_field(facts["thread_id"]),
        text_field(facts["identity_key"]),
        text_field(facts["checkpoint_ns"]),
        text_field(facts["task_id"]),
        text_field(facts["node"]),
        _optional(facts["checkpoint_id"]),
        text_field(facts["kind"]),
        text_field(facts["name"]),
        integer_field(facts["occurrence"]),
        text_field(facts["fork"]),
        text_field(facts["agent_name"]),
        text_field(facts["request_digest"]),
        bytes_field(facts["request"]),
        text_field(facts["effect"]),
        boolean_field(facts["idempotent"]),
        _ids(facts["budgets"]),
        json_field(facts["reserved"]),
        _optional(facts["model"]),
        _optional(facts["prompt_version"]),
        text_field(facts["policy_version"]),
        bigint_field(facts["timeout_ms"]),
    )


def close_row(facts: Mapping[str, Any], budgets: Sequence[str]) -> Row:
    """The row of a call that is closed, with the budgets that it was opened with."""
    response = facts["response"]
    return (
        uuid_field(facts["call_id"]),
        uuid_field(facts["thread_id"]),
        _ids(budgets),
        text_field(facts["status"]),
        json_field(facts["used"]),
        NULL if response is None else bytes_field(response),
        _optional(facts["error_type"]),
        _optional(facts["error_message"]),
        json_field(facts["error_facts"]),
        bigint_field(facts["latency_ms"]),
    )


def record_columns(batch: Iterable[tuple[int, Records]]) -> Mapping[str, Encoded]:
    """The batch as parameters of the statement that writes it. Each part comes with the slot of its owner."""
    slotted = [(integer_field(slot), records) for slot, records in batch]
    return {
        **_EVENTS.of([(slot, *row) for slot, records in slotted for row in records.events]),
        **_QUESTIONS.of([(slot, *row) for slot, records in slotted for row in records.questions]),
        **_OPENS.of([(slot, *row) for slot, records in slotted for row in records.opens]),
        **_CLOSES.of([(slot, *row) for slot, records in slotted for row in records.closes]),
    }


def _ids(ids: Sequence[str]) -> bytes:
    """A `uuid[]`, as one text."""
    return text_field(f"{{{','.join(ids)}}}")


def _optional(text: str | None) -> bytes:
    return NULL if text is None else text_field(text)
