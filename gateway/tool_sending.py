"""One tool call on its way: in time, told its key, sent again only when that may help, and written down."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from holdfast.contracts.approvals import Approval
from holdfast.contracts.calls import CallIdentity, CallIntent, CallOutcome, CallRecord
from holdfast.contracts.classification import contained, is_signal, translated
from holdfast.contracts.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    ErrorType,
    HoldfastError,
    HumanRequired,
    LeaseLost,
    NotGoverned,
    OutcomeUnknown,
    TimedOut,
    TransientDependency,
)
from holdfast.contracts.events import EventKind
from holdfast.contracts.ids import CallId
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.ports import Dice, Events, Journal
from holdfast.contracts.scope import Scope
from holdfast.contracts.tools import ToolRequest, ToolResult
from holdfast.contracts.verdicts import Verdict
from holdfast.gateway.closing import written
from holdfast.gateway.last_look import on_its_way
from holdfast.gateway.tool_outcomes import ONE_CALL, drafted, failed, fitted, result_of, returned
from holdfast.gateway.toolset import Tool, ToolCall, called_for
from holdfast.gateway.within import noted
from holdfast.policies.deadline import timeout_seconds
from holdfast.policies.retry import RetryTerms, may_have_happened, may_retry, pause_seconds

_KIND_OF_OUTCOME = {
    "returned": EventKind.TOOL_RETURNED,
    "failed": EventKind.TOOL_FAILED,
    "unknown": EventKind.CALL_UNKNOWN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """One call that may be sent: what was asked, where, and the terms it was let through on."""

    request: ToolRequest
    identity: CallIdentity
    scope: Scope
    entry: Tool
    args: dict[str, Any]
    verdict: Verdict
    grant: Approval | None = None

    def timeout_seconds(self) -> float:
        """The seconds one send may take; raises `DeadlineExceeded` when none are left."""
        what = f"tool {self.entry.name}"
        ours = timeout_seconds(self.request.deadline, self.entry.terms.timeout_seconds, what=what)
        return timeout_seconds(self.scope.deadline, ours, what=what)

    def intent(self, call_id: CallId) -> CallIntent:
        """The journal's row before the call."""
        terms = self.entry.terms
        return CallIntent(
            call_id=call_id,
            identity=self.identity,
            agent_name=self.request.agent_name or self.scope.agent_name,
            request=noted(
                {"tool_name": self.entry.name, "tool_call_id": self.request.tool_call_id, "input": self.args}
            ),
            effect=terms.effect,
            idempotent=terms.idempotent,
            reservation=ONE_CALL,
            budgets=self.scope.budgets,
            timeout_seconds=self.timeout_seconds(),
            policy_version=self.verdict.policy_version,
            grant=None if self.grant is None else self.grant.id,
        )


class ToolSender:
    """Sends calls whose intent is recorded, and records what came of them."""

    def __init__(self, *, journal: Journal, events: Events, dice: Dice, retry: RetryTerms) -> None:
        self._journal = journal
        self._events = events
        self._dice = dice
        self._retry = retry

    async def send(self, sending: Sending, record: CallRecord) -> ToolResult | CallRecord:
        """Send until there is an outcome, or the call may not be sent again. The record, now `unknown`, when the
        answer was lost and the call cannot simply be repeated."""
        attempt, started = 1, _now(sending)
        while True:
            try:
                output = fitted(await self._answer(sending, record), entry=sending.entry)
                await reach(Mark.TOOL_ANSWERED)
            except asyncio.CancelledError:
                await self._cut_short(sending, record, started)
                raise
            except LeaseLost:
                raise  # another worker's call now: it finds the intent, and what became of it is for it to say
            except HoldfastError as error:
                if error.error_type is ErrorType.CANCELLATION:
                    await self._cut_short(sending, record, started)
                    raise
                if may_have_happened(error) and not sending.entry.harmless_twice:
                    outcome = failed(record.call_id, error, _since(sending, started), unknown=True)
                    return await self.close(sending, outcome)
                if not await self._paused(sending, record, error, attempt, started):
                    return await self._failed(sending, record, error, started)
                attempt += 1
                record = await self.again(sending, record, EventKind.TOOL_RETRIED, error_type=error.code)
            else:
                closed = await self.close(sending, returned(record.call_id, output, _since(sending, started)))
                return result_of(closed, sending.request.tool_call_id, replayed=False)

    async def again(self, sending: Sending, record: CallRecord, kind: EventKind, **facts: Any) -> CallRecord:
        """The record of a call that is about to be sent once more, with the same key. For the budget another send is
        another tool call."""
        event = drafted(kind, sending.identity, call_id=record.call_id, sends=record.sends + 1, **facts)
        try:
            resent = await self._journal.resend(sending.scope.owner, record.call_id, reservation=ONE_CALL, event=event)
        except BudgetExceeded as error:
            await self.over_budget(sending, error)
            raise
        await reach(Mark.RESEND_RECORDED)
        return resent

    async def over_budget(self, sending: Sending, error: BudgetExceeded) -> None:
        """Write down that a budget had no room for the call."""
        event = drafted(EventKind.BUDGET_REFUSED, sending.identity, **error.facts)
        await self._events.append(sending.scope.owner, [event])

    async def close(
        self, sending: Sending, outcome: CallOutcome, kind: EventKind | None = None, **facts: Any
    ) -> CallRecord:
        """The record with its outcome. The write is finished before a cancellation goes on."""
        facts |= {
            "status": outcome.status.value,
            "error_type": None if outcome.error_type is None else outcome.error_type.value,
            "latency_ms": outcome.latency_ms,
        }
        event = drafted(kind or _KIND_OF_OUTCOME[outcome.status], sending.identity, call_id=outcome.call_id, **facts)
        await reach(Mark.OUTCOME_RECORDING)
        record = await written(self._journal.close(sending.scope.owner, outcome, event=event))
        await reach(Mark.OUTCOME_RECORDED)
        return record

    async def _answer(self, sending: Sending, record: CallRecord) -> Any:
        """One send. Raises errors of ours, LangGraph's signals, and cancellation."""
        entry, scope = sending.entry, sending.scope
        seconds = sending.timeout_seconds()
        told = _told(sending, seconds)
        await reach(Mark.TOOL_SENDING)
        scope.require_open(f"tool {entry.name!r}")
        scope.require_ours()  # before its task or thread is made; its body looks once more
        try:
            with on_its_way(scope), called_for(told), contained(), scope.acting(sending.identity.key):
                async with asyncio.timeout(seconds) as timer:
                    answer = await entry.run(sending.args)
                    await reach(Mark.TOOL_SENT)
                    return answer
        except TimeoutError as error:
            raise (_late(sending, seconds) if timer.expired() else translated(error)) from error
        except Exception as error:
            if is_signal(error):  # `interrupt()` inside a tool is no failure of it
                await self._asked_inside(sending, record)
                raise
            raise translated(error) from error

    async def _paused(
        self, sending: Sending, record: CallRecord, error: HoldfastError, attempt: int, started: float
    ) -> bool:
        """Wait before the next send; False when there is to be none."""
        if (pause := self._pause(sending, error, attempt)) is None:
            return False
        try:
            await asyncio.sleep(pause)
        except asyncio.CancelledError:
            # The last send has an outcome. Without it a later attempt would have to doubt the call.
            with suppress(HoldfastError):
                await self._failed(sending, record, error, started)
            raise
        return True

    def _pause(self, sending: Sending, error: HoldfastError, attempt: int) -> float | None:
        terms = sending.entry.terms
        if attempt >= self._retry.attempts or not may_retry(error, effect=terms.effect, idempotent=terms.idempotent):
            return None
        asked = error.facts.get("retry_after_seconds")
        pause = pause_seconds(attempt, self._retry, self._dice.fraction(), asked)
        left = min(sending.request.deadline.remaining_seconds(), sending.scope.deadline.remaining_seconds())
        return pause if pause < left else None

    async def _failed(self, sending: Sending, record: CallRecord, error: HoldfastError, started: float) -> ToolResult:
        closed = await self.close(sending, failed(record.call_id, error, _since(sending, started)))
        if isinstance(error, BudgetExceeded | HumanRequired | NotGoverned):
            raise error  # not the tool's own failure, but that of something governed that it called
        return result_of(closed, sending.request.tool_call_id, replayed=False)

    async def _cut_short(self, sending: Sending, record: CallRecord, started: float) -> None:
        """Say that it is not known what became of the call. An intent without an outcome says the same, so that
        nothing is lost when even this cannot be written."""
        name = sending.entry.name
        lost = OutcomeUnknown(f"{name} was cancelled before it had answered", call_id=record.call_id, tool_name=name)
        with suppress(HoldfastError):
            await self.close(sending, failed(record.call_id, lost, _since(sending, started), unknown=True))

    async def _asked_inside(self, sending: Sending, record: CallRecord) -> None:
        """The tool paused for a person (`interrupt()` in its body), and will be run again from its first line."""
        paused = TransientDependency(f"{sending.entry.name} paused for a person, and is run again with their answer")
        await self.close(sending, failed(record.call_id, paused, 0))


def _told(sending: Sending, seconds: float) -> ToolCall:
    scope = sending.scope
    return ToolCall(
        idempotency_key=sending.identity.key,
        deadline=scope.deadline.child(seconds),
        tenant=scope.tenant.tenant_id,
        run_id=scope.run.run_id,
        tool_call_id=sending.request.tool_call_id,
    )


def _late(sending: Sending, seconds: float) -> TimedOut:
    name, cap = sending.entry.name, sending.entry.terms.timeout_seconds
    if seconds < cap:
        return DeadlineExceeded(
            f"the run's deadline passed before {name} answered", timeout_seconds=seconds, needed_for=name, sent=True
        )
    return TimedOut(f"{name} did not answer within {seconds:g} s", timeout_seconds=seconds, sent=True)


def _now(sending: Sending) -> float:
    return sending.scope.deadline.clock.monotonic()


def _since(sending: Sending, started: float) -> int:
    return round((_now(sending) - started) * 1000)
