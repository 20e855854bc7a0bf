"""What became of a tool call whose answer was lost: found out before anything is sent again."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from holdfast.contracts.approvals import Approval, ApprovalKind, ApprovalStatus, Question
from holdfast.contracts.calls import CallOutcome, CallRecord
from holdfast.contracts.canonical import digest
from holdfast.contracts.classification import translated
from holdfast.contracts.errors import HoldfastError, LeaseLost, OutcomeUnknown
from holdfast.contracts.events import EventKind
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.ports import Journal
from holdfast.contracts.scope import Scope
from holdfast.contracts.tools import ToolRequest, ToolResult
from holdfast.gateway.closing import written
from holdfast.gateway.tool_outcomes import drafted, failed, fitted, response_in, result_of, returned
from holdfast.gateway.tool_sending import Sending, ToolSender


class Reconciler:
    """Settles calls in doubt.

    One that may be repeated is sent again with the same key. One whose tool can look it up is looked up: that it was
    done is final; that it was not counts only once it can no longer arrive late. All others are put before a person,
    who answers: approve (it was not done, send it), respond (it was done, and this is its result), reject (give it
    up: it is recorded as failed).
    """

    def __init__(self, *, sender: ToolSender, journal: Journal, grace_seconds: float) -> None:
        self._sender = sender
        self._journal = journal
        self._grace_seconds = grace_seconds

    async def settled(self, sending: Sending, record: CallRecord, approval: Approval | None) -> ToolResult | Question:
        """The call's result, now that it is known what became of it; or the question."""
        if sending.entry.harmless_twice:
            return await self._sent_again(sending, record, EventKind.TOOL_RETRIED, reason="the answer was lost")
        if approval is not None and approval.status is ApprovalStatus.APPROVED and answers_doubt(approval, record):
            return await self._sent_again(sending, record, EventKind.CALL_RECONCILED, **_by(approval, "not done"))
        if sending.entry.reconcile is None:
            return in_doubt(record, "the tool has no way to look it up")
        return await self._looked_up(sending, record)

    async def ruled(
        self, approval: Approval, record: CallRecord, request: ToolRequest, scope: Scope
    ) -> ToolResult | None:
        """The result when a person has said that the call was done, or is to be given up; None otherwise."""
        if approval.status is ApprovalStatus.APPROVED or not answers_doubt(approval, record):
            return None
        outcome, found = _ruling(approval, record)
        event = drafted(
            EventKind.CALL_RECONCILED,
            record.identity,
            call_id=record.call_id,
            status=outcome.status.value,
            **_by(approval, found),
        )
        await reach(Mark.OUTCOME_RECORDING)
        closed = await written(self._journal.close(scope.owner, outcome, event=event))
        await reach(Mark.OUTCOME_RECORDED)
        return result_of(closed, request.tool_call_id, replayed=False)

    async def _looked_up(self, sending: Sending, record: CallRecord) -> ToolResult | Question:
        try:
            found = await self._found(sending)
            if found is None:
                wait = sending.entry.terms.timeout_seconds + self._grace_seconds
                if wait >= sending.scope.deadline.remaining_seconds():
                    return in_doubt(record, "it has not been done so far, but it may still arrive")
                await asyncio.sleep(wait)
                found = await self._found(sending)
        except LeaseLost:
            raise
        except HoldfastError as error:
            return in_doubt(record, f"looking it up failed: {error.message}")
        if found is None:
            return await self._sent_again(sending, record, EventKind.CALL_RECONCILED, by="tool", found="not done")
        outcome = returned(record.call_id, fitted(found, entry=sending.entry), 0)
        closed = await self._sender.close(sending, outcome, EventKind.CALL_RECONCILED, by="tool", found="done")
        return result_of(closed, sending.request.tool_call_id, replayed=False)

    async def _found(self, sending: Sending) -> Any:
        assert sending.entry.reconcile is not None, "asked only where the tool can tell"
        await reach(Mark.RECONCILE_ASKING)
        sending.scope.require_ours()
        found = await asked(sending.entry.reconcile, sending.identity.key, seconds=sending.timeout_seconds())
        await reach(Mark.RECONCILE_ANSWERED)
        return found

    async def _sent_again(
        self, sending: Sending, record: CallRecord, kind: EventKind, **facts: Any
    ) -> ToolResult | Question:
        answer = await self._sender.send(sending, await self._sender.again(sending, record, kind, **facts))
        if isinstance(answer, ToolResult):
            return answer
        return in_doubt(answer, "it was sent again, and that answer was lost too")


async def asked(function: Callable[..., Any], *args: Any, seconds: float, **arguments: Any) -> Any:
    """What a tool's `reconcile` or `preview` answers in time; a synchronous one is asked in a thread. Raises errors
    of ours alone."""
    try:
        async with asyncio.timeout(seconds):
            if inspect.iscoroutinefunction(function):
                return await function(*args, **arguments)
            return await asyncio.to_thread(function, *args, **arguments)
    except Exception as error:
        raise translated(error) from error


def in_doubt(record: CallRecord, why: str, *, may_send: bool = True) -> Question:
    """The question what became of a call. Where it may not be sent again, `approve` is not offered."""
    name = record.identity.name
    approve = f" Approve: {name} was not done, send it now." if may_send else ""
    return Question(
        kind=ApprovalKind.RECONCILE,
        tool_name=name,
        args=dict(record.request["input"]),
        args_digest=_doubt_digest(record),
        policy_version=record.policy_version,
        rule="reconcile",
        reason=(
            f"The answer of {name} was lost, so it may or may not have been done: {why}.{approve} "
            "Respond: it was done, and this is its result. Reject: give it up; it is recorded as failed."
        ),
        allowed=("approve", "respond", "reject") if may_send else ("respond", "reject"),
        call_id=record.call_id,
    )


def answers_doubt(approval: Approval, record: CallRecord) -> bool:
    """Whether a person's word is about this call in this doubt, not about an earlier one."""
    decided = approval.status not in {ApprovalStatus.PENDING, ApprovalStatus.WITHDRAWN}
    return approval.kind is ApprovalKind.RECONCILE and decided and approval.args_digest == _doubt_digest(record)


def _doubt_digest(record: CallRecord) -> str:
    """What a person's word holds for: this call, as often as it has been sent."""
    return digest({"call_id": record.call_id, "sends": record.sends})


def _ruling(approval: Approval, record: CallRecord) -> tuple[CallOutcome, str]:
    decision = approval.decision or {}
    if approval.status is ApprovalStatus.RESPONDED:
        return returned(record.call_id, response_in(decision), 0), "done"
    name = record.identity.name
    error = OutcomeUnknown(
        f"it is not known whether {name} was done, and it was given up: "
        f"{decision.get('message') or 'nobody could say in time'}",
        call_id=record.call_id,
        tool_name=name,
    )
    return failed(record.call_id, error, 0), "given up"


def _by(approval: Approval, found: str) -> dict[str, Any]:
    return {"by": approval.decided_by, "approval_id": approval.id, "found": found}
