"""What came of a tool call: for the journal, for the event log, and for the model that asked."""

from collections.abc import Mapping
from typing import Any

from holdfast.contracts.approvals import Approval, ApprovalStatus
from holdfast.contracts.calls import CallIdentity, CallOutcome, CallRecord, OutcomeStatus
from holdfast.contracts.canonical import canonical, plain
from holdfast.contracts.errors import ErrorType, HoldfastError, InvalidRequest, TooLarge
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import CallId
from holdfast.contracts.limits import Usage
from holdfast.contracts.tools import Effect, ToolResult
from holdfast.gateway.toolset import Tool
from holdfast.policies.rulings import SAID_NO, decision_of
from holdfast.telemetry.spans import traced_event

ONE_CALL = Usage(tool_calls=1)
"""What each send of a tool uses."""

_ROOM_FOR_THE_NOTE = 256


def drafted(kind: EventKind, identity: CallIdentity, *, call_id: CallId | None = None, **payload: Any) -> EventDraft:
    """An event about a tool call."""
    site, facts = identity.site, {"tool_name": identity.name, **payload}
    return traced_event(kind, facts, node=site.node, task_id=site.task_id, call_id=call_id)


def fitted(value: Any, *, entry: Tool) -> dict[str, Any]:
    """A tool's answer as bounded JSON.

    One that does not fit is the failure of a tool that only reads, which can be asked for less (`InvalidRequest`,
    `TooLarge`). Of any other the effect has happened, and that must not be lost: a note stands in for the answer.
    """
    try:
        output = _mapping(plain(value))
        size = len(canonical(output))
    except InvalidRequest as error:
        if entry.terms.effect is Effect.READ:
            raise InvalidRequest(f"{entry.name} answered with what is not JSON: {error.message}") from error
        return {"note": f"{entry.name} did its work, but its answer is not JSON: {error.message}"}
    if size <= (limit := entry.terms.max_result_bytes):
        return output
    if entry.terms.effect is Effect.READ:
        raise TooLarge(
            f"the answer of {entry.name} has {size} bytes, more than its limit of {limit}; ask for less",
            size_bytes=size,
            limit_bytes=limit,
        )
    kept = canonical(output)[: max(0, limit // 2 - _ROOM_FOR_THE_NOTE)].decode(errors="ignore")
    return {"truncated": kept, "note": f"{entry.name} did its work; its answer of {size} bytes was cut to fit {limit}"}


def returned(call_id: CallId, output: Mapping[str, Any], latency_ms: int) -> CallOutcome:
    """The outcome of a call that answered."""
    return CallOutcome(
        call_id=call_id,
        status=OutcomeStatus.RETURNED,
        usage=ONE_CALL,
        response={"output": output},
        latency_ms=latency_ms,
    )


def failed(call_id: CallId, error: HoldfastError, latency_ms: int, *, unknown: bool = False) -> CallOutcome:
    """The outcome of a call that ended in `error`: not done, or `unknown` when it may have been done all the same."""
    return CallOutcome(
        call_id=call_id,
        status=OutcomeStatus.UNKNOWN if unknown else OutcomeStatus.FAILED,
        usage=ONE_CALL,
        error_type=error.error_type,
        error_message=error.message,
        error_facts=error.facts,
        latency_ms=latency_ms,
    )


def refusal(tool_call_id: str, error: HoldfastError) -> ToolResult:
    """What the model is told of a call that was refused or failed."""
    return ToolResult(
        tool_call_id=tool_call_id, status="error", error_type=error.error_type, error_message=error.message
    )


def result_of(record: CallRecord, tool_call_id: str, *, replayed: bool) -> ToolResult:
    """The result that a recorded outcome stands for."""
    if record.status == "returned":
        output = (record.response or {}).get("output")
        return ToolResult(tool_call_id=tool_call_id, status="ok", output=output, replayed=replayed)
    return ToolResult(
        tool_call_id=tool_call_id,
        status="error",
        error_type=record.error_type,
        error_message=record.error_message,
        replayed=replayed,
    )


def answered_instead(approval: Approval, tool_call_id: str) -> ToolResult:
    """What the model is told when a person said no, answered in the tool's place, or did not decide in time."""
    decision = decision_of(approval)
    if approval.status is ApprovalStatus.RESPONDED:
        return ToolResult(tool_call_id=tool_call_id, status="rejected", output=response_in(decision))
    return ToolResult(
        tool_call_id=tool_call_id,
        status="rejected",
        error_type=ErrorType.HUMAN_REQUIRED,
        error_message=f"{approval.tool_name} was not called. {decision.get('message') or SAID_NO}",
    )


def response_in(decision: Mapping[str, Any]) -> dict[str, Any]:
    """The answer that a person gave in a tool's place."""
    return _mapping(decision.get("value", decision.get("message")))


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"result": value}
