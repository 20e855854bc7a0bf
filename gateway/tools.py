"""The one door for tool calls: journal, policy, intent, act, outcome, and what to do when the answer was lost."""

import asyncio
import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from holdfast.contracts.approvals import Approval, ApprovalKind, ApprovalStatus, Question, grant_digest
from holdfast.contracts.calls import CallIdentity, CallIntent, CallOutcome, CallRecord, Fresh, Recorded, Unknown
from holdfast.contracts.canonical import digest
from holdfast.contracts.classification import translated
from holdfast.contracts.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    ErrorType,
    HoldfastError,
    HumanRequired,
    InvalidRequest,
    NotGoverned,
    OutcomeUnknown,
    PolicyDenied,
    TimedOut,
    TransientDependency,
)
from holdfast.contracts.events import EventKind
from holdfast.contracts.ids import CallId
from holdfast.contracts.ports import Dice, Events, Ids, Journal
from holdfast.contracts.scope import Scope
from holdfast.contracts.tools import ToolRequest, ToolResult
from holdfast.contracts.verdicts import Decision, Policy, PolicyRequest, Verdict
from holdfast.gateway.closing import written
from holdfast.gateway.tool_outcomes import (
    ONE_CALL,
    answered_instead,
    drafted,
    failed,
    fitted,
    refusal,
    response_in,
    result_of,
    returned,
)
from holdfast.gateway.toolset import Tool, ToolCall, Toolset, called_for
from holdfast.policies.deadline import timeout_seconds
from holdfast.policies.replay import counts_as_no_outcome
from holdfast.policies.retry import RetryTerms, may_have_happened, may_retry, pause_seconds
from holdfast.telemetry.spans import record_tool, tool_span

_GRANTING = frozenset({ApprovalStatus.APPROVED, ApprovalStatus.EDITED})
_UNDECIDED = frozenset({ApprovalStatus.PENDING, ApprovalStatus.WITHDRAWN})
# LangGraph's signals, by name since this room knows no LangGraph: `interrupt()` inside a tool is no failure of it.
_SIGNAL = "langgraph.errors.GraphBubbleUp"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One call that may be sent: what was asked, where, and the terms it was let through on."""

    request: ToolRequest
    identity: CallIdentity
    scope: Scope
    entry: Tool
    args: dict[str, Any]
    verdict: Verdict
    grant: Approval | None = None
    record: CallRecord | None = None

    @property
    def call_id(self) -> CallId:
        assert self.record is not None, "the intent is recorded before anything is sent"
        return self.record.call_id

    def timeout_seconds(self) -> float:
        """The seconds one send may take; raises `DeadlineExceeded` when none are left."""
        what = f"tool {self.entry.name}"
        ours = timeout_seconds(self.request.deadline, self.entry.terms.timeout_seconds, what=what)
        return timeout_seconds(self.scope.deadline, ours, what=what)


class ToolExecutor:
    """Carries tool calls to their tools, at most once each, and answers a call that was made before from its record.

    It never pauses a graph: where a person must decide it returns a `Question`, and is called again with the answer.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        events: Events,
        policy: Policy,
        ids: Ids,
        dice: Dice,
        retry: RetryTerms | None = None,
        grace_seconds: float = 5.0,
    ) -> None:
        self._journal = journal
        self._events = events
        self._policy = policy
        self._ids = ids
        self._dice = dice
        self._retry = retry or RetryTerms()
        self._grace_seconds = grace_seconds
        """Beyond its timeout, how long a lost call may still arrive before it counts as not done."""

    def identify(self, request: ToolRequest, *, scope: Scope) -> CallIdentity:
        """The identity of this call; each identification counts as another occurrence. Raises `NotGoverned`."""
        scope.require_open(f"tool {request.tool_name!r}")
        if request.run_id != scope.run.run_id:
            raise NotGoverned(
                f"tool {request.tool_name!r} was asked for run {request.run_id} inside run {scope.run.run_id}",
                action="call_tool",
                rule="scope.run",
            )
        return scope.identify("tool", request.tool_name, _request_digest(request))

    async def examine(
        self, request: ToolRequest, identity: CallIdentity, *, scope: Scope, toolset: Toolset
    ) -> ToolResult | Question | None:
        """Why this call may not simply be made: a refusal for the model, or a question for a person. None: go.

        A call that was made before is answered from its record, whatever policy says now: None. A refusal is recorded
        as `tool.refused`.
        """
        scope.require_open(f"tool {request.tool_name!r}")
        if await self._earlier(identity, scope) is not None:
            return None
        answer = await self._admitted(request, identity, scope=scope, toolset=toolset)
        return None if isinstance(answer, _Call) else answer

    async def perform(
        self,
        request: ToolRequest,
        identity: CallIdentity,
        *,
        scope: Scope,
        toolset: Toolset,
        approval: Approval | None = None,
    ) -> ToolResult | Question:
        """The call's result: from the journal, or by sending it now if it may be; or a question for a person.

        `approval` is the one asked last for this identity. It is a grant for exactly its arguments under exactly its
        policy, and is used up with the intent. Raises `BudgetExceeded`, `LeaseLost`, `StoreUnavailable` and whatever
        else must end the node rather than be told to a model.
        """
        scope.require_open(f"tool {request.tool_name!r}")
        clock = scope.deadline.clock
        started = clock.monotonic()
        name, arguments = request.tool_name, request.input
        with tool_span(scope, tool_name=name, tool_call_id=request.tool_call_id, arguments=arguments) as span:
            answer = await self._performed(request, identity, scope=scope, toolset=toolset, approval=approval)
            if isinstance(answer, ToolResult):
                record_tool(span, answer, round((clock.monotonic() - started) * 1000), tool_name=name)
            return answer

    async def _performed(
        self,
        request: ToolRequest,
        identity: CallIdentity,
        *,
        scope: Scope,
        toolset: Toolset,
        approval: Approval | None,
    ) -> ToolResult | Question:
        earlier = await self._earlier(identity, scope)
        if earlier is not None and earlier.status in {"returned", "failed"}:
            return await self._replayed(earlier, request, scope)
        if earlier is not None:
            return await self._doubted(earlier, request, identity, scope=scope, toolset=toolset, approval=approval)
        if approval is None or approval.kind is not ApprovalKind.TOOL or approval.status in _UNDECIDED:
            call = await self._admitted(request, identity, scope=scope, toolset=toolset)
        elif approval.status in _GRANTING:
            call = await self._granted(approval, request, identity, scope=scope, toolset=toolset)
        else:
            return answered_instead(approval, request.tool_call_id)
        return await self._intended(call, approval) if isinstance(call, _Call) else call

    async def _earlier(self, identity: CallIdentity, scope: Scope) -> CallRecord | None:
        """The call's record, unless it is a failure that may be tried again."""
        record = await self._journal.find(scope.tenant.tenant_id, scope.owner.thread_id, identity.key)
        return None if record is None or counts_as_no_outcome(record) else record

    async def _replayed(self, record: CallRecord, request: ToolRequest, scope: Scope) -> ToolResult:
        event = drafted(EventKind.TOOL_REPLAYED, record.identity, call_id=record.call_id, status=record.status)
        await self._events.append(scope.owner, [event])
        return result_of(record, request.tool_call_id, replayed=True)

    # Whether it may be sent

    async def _admitted(
        self, request: ToolRequest, identity: CallIdentity, *, scope: Scope, toolset: Toolset
    ) -> _Call | ToolResult | Question:
        """The call, if it needs no one's approval."""
        try:
            call = self._checked(request, identity, scope=scope, toolset=toolset)
        except HoldfastError as error:
            return await self._refused(request, identity, scope, error)
        return call if call.verdict.decision is Decision.ALLOW else await self._question(call)

    async def _granted(
        self, approval: Approval, request: ToolRequest, identity: CallIdentity, *, scope: Scope, toolset: Toolset
    ) -> _Call | ToolResult | Question:
        """The call, with the arguments that were approved. A denial wins over the approval; an approval of anything
        else than would be sent now (the policy has changed, say) is none, and the question is asked again."""
        edited = approval.status is ApprovalStatus.EDITED
        given = _edited(approval) if edited else request.input
        try:
            call = self._checked(request, identity, scope=scope, toolset=toolset, args=given)
        except HoldfastError as error:
            return await self._refused(request, identity, scope, error)
        dispatched = given if edited else call.args
        if grant_digest(request.tool_name, dispatched, call.verdict.policy_version) != approval.granted_digest:
            return await self._admitted(request, identity, scope=scope, toolset=toolset)
        return replace(call, grant=approval)

    def _checked(
        self,
        request: ToolRequest,
        identity: CallIdentity,
        *,
        scope: Scope,
        toolset: Toolset,
        args: Mapping[str, Any] | None = None,
    ) -> _Call:
        """The call with policy's verdict on it. Raises what it is refused with."""
        entry = toolset.require(request.tool_name)
        complete = entry.completed(request.input if args is None else args)
        entry.require_valid(complete)
        _require_permitted(entry, scope)
        verdict = self._policy.decide(_facts(entry, complete, request, scope))
        if verdict.decision is Decision.DENY:
            raise PolicyDenied(
                f"policy does not let {request.tool_name} be called ({verdict.rule}): {verdict.reason}",
                rule=verdict.rule,
                action="call_tool",
                resource=request.tool_name,
            )
        call = _Call(request=request, identity=identity, scope=scope, entry=entry, args=complete, verdict=verdict)
        call.timeout_seconds()
        return call

    async def _refused(
        self, request: ToolRequest, identity: CallIdentity, scope: Scope, error: HoldfastError
    ) -> ToolResult:
        event = drafted(
            EventKind.TOOL_REFUSED,
            identity,
            tool_call_id=request.tool_call_id,
            error_type=error.error_type.value,
            rule=error.facts.get("rule"),
        )
        await self._events.append(scope.owner, [event])
        return refusal(request.tool_call_id, error)

    async def _question(self, call: _Call) -> Question:
        name, version = call.entry.name, call.verdict.policy_version
        return Question(
            kind=ApprovalKind.TOOL,
            tool_name=name,
            args=call.args,
            args_digest=grant_digest(name, call.args, version),
            policy_version=version,
            rule=call.verdict.rule,
            reason=call.verdict.reason,
            preview=await _preview(call) if call.verdict.decision is Decision.PREVIEW else None,
        )

    # Sending it

    async def _intended(self, call: _Call, approval: Approval | None) -> ToolResult | Question:
        event = drafted(
            EventKind.TOOL_INTENDED,
            call.identity,
            tool_call_id=call.request.tool_call_id,
            effect=call.entry.terms.effect.value,
            rule=call.verdict.rule,
        )
        try:
            opened = await self._journal.open(call.scope.owner, self._intent(call), event=event)
        except PolicyDenied as error:
            return await self._refused(call.request, call.identity, call.scope, error)
        except BudgetExceeded as error:
            await self._over_budget(call, error)
            raise
        match opened:
            case Fresh():
                return await self._sent(replace(call, record=opened.record))
            case Recorded():
                return await self._replayed(opened.record, call.request, call.scope)
            case Unknown():
                return await self._reconciled(replace(call, record=opened.record), approval)

    def _intent(self, call: _Call) -> CallIntent:
        terms = call.entry.terms
        return CallIntent(
            call_id=CallId(self._ids.new()),
            identity=call.identity,
            agent_name=call.request.agent_name or call.scope.agent_name,
            request={"tool_name": call.entry.name, "tool_call_id": call.request.tool_call_id, "input": call.args},
            effect=terms.effect,
            idempotent=terms.idempotent,
            reservation=ONE_CALL,
            budgets=call.scope.budgets,
            timeout_seconds=call.timeout_seconds(),
            policy_version=call.verdict.policy_version,
            grant=None if call.grant is None else call.grant.id,
        )

    async def _over_budget(self, call: _Call, error: BudgetExceeded) -> None:
        event = drafted(EventKind.BUDGET_REFUSED, call.identity, **error.facts)
        await self._events.append(call.scope.owner, [event])

    async def _sent(self, call: _Call) -> ToolResult | Question:
        """Send the call until it has an outcome, or may not be sent again."""
        attempt, started = 1, call.scope.deadline.clock.monotonic()
        while True:
            try:
                output = fitted(await self._answer(call), entry=call.entry)
            except asyncio.CancelledError:
                await self._cut_short(call, started)
                raise
            except HoldfastError as error:
                if error.error_type is ErrorType.CANCELLATION:
                    await self._cut_short(call, started)
                    raise
                if may_have_happened(error) and not call.entry.harmless_twice:
                    return await self._lost(call, error, started)
                if not await self._paused(call, error, attempt, started):
                    return await self._failed(call, error, started)
                attempt += 1
                call = await self._again(call, EventKind.TOOL_RETRIED, attempt=attempt, error_type=error.code)
            else:
                return await self._close(call, returned(call.call_id, output, _since(call, started)))

    async def _answer(self, call: _Call) -> Any:
        """One send. Raises errors of ours, LangGraph's signals, and cancellation."""
        seconds = call.timeout_seconds()
        told = ToolCall(
            idempotency_key=call.identity.key,
            deadline=call.scope.deadline.child(seconds),
            tenant=call.scope.tenant.tenant_id,
            run_id=call.scope.run.run_id,
            tool_call_id=call.request.tool_call_id,
        )
        call.scope.require_open(f"tool {call.entry.name!r}")
        call.scope.require_ours()  # the last thing before the send
        try:
            with called_for(told):
                async with asyncio.timeout(seconds) as timer:
                    return await call.entry.run(call.args)
        except TimeoutError as error:
            raise (_late(call, seconds) if timer.expired() else translated(error)) from error
        except Exception as error:
            if _is_signal(error):
                await self._asked_inside(call)
                raise
            raise translated(error) from error

    async def _paused(self, call: _Call, error: HoldfastError, attempt: int, started: float) -> bool:
        """Wait before the next send; False when there is to be none."""
        terms = call.entry.terms
        retries = may_retry(error, effect=terms.effect, idempotent=terms.idempotent)
        if not retries or attempt >= self._retry.attempts:
            return False
        asked = error.facts.get("retry_after_seconds")
        pause = pause_seconds(attempt, self._retry, self._dice.fraction(), asked)
        if pause >= min(call.request.deadline.remaining_seconds(), call.scope.deadline.remaining_seconds()):
            return False
        try:
            await asyncio.sleep(pause)
        except asyncio.CancelledError:
            # The last send has an outcome. Without it a later attempt would have to doubt the call.
            with suppress(HoldfastError):
                await written(self._close(call, failed(call.call_id, error, _since(call, started))))
            raise
        return True

    async def _again(self, call: _Call, kind: EventKind, **facts: Any) -> _Call:
        """The call, to be sent once more with the same key. Another send is another tool call for the budget."""
        event = drafted(kind, call.identity, call_id=call.call_id, **facts)
        try:
            record = await self._journal.resend(call.scope.owner, call.call_id, reservation=ONE_CALL, event=event)
        except BudgetExceeded as error:
            await self._over_budget(call, error)
            raise
        return replace(call, record=record)

    async def _failed(self, call: _Call, error: HoldfastError, started: float) -> ToolResult:
        result = await self._close(call, failed(call.call_id, error, _since(call, started)))
        if isinstance(error, BudgetExceeded | HumanRequired | NotGoverned):
            raise error  # not the tool's own failure, but that of something governed that it called
        return result

    async def _lost(self, call: _Call, error: HoldfastError, started: float) -> ToolResult | Question:
        await self._close(call, failed(call.call_id, error, _since(call, started), unknown=True))
        return await self._reconciled(call, None)

    async def _cut_short(self, call: _Call, started: float) -> None:
        """Say that it is not known what became of the call. An intent without an outcome says the same, so that
        nothing is lost when even this cannot be written."""
        lost = OutcomeUnknown(
            f"{call.entry.name} was cancelled before it had answered", call_id=call.call_id, tool_name=call.entry.name
        )
        with suppress(HoldfastError):
            await written(self._close(call, failed(call.call_id, lost, _since(call, started), unknown=True)))

    async def _asked_inside(self, call: _Call) -> None:
        """The tool paused for a person (`interrupt()` in its body), and will be run again from its first line."""
        paused = TransientDependency(f"{call.entry.name} paused for a person, and is run again with their answer")
        await self._close(call, failed(call.call_id, paused, 0))

    async def _close(self, call: _Call, outcome: CallOutcome) -> ToolResult:
        kind = {
            "returned": EventKind.TOOL_RETURNED,
            "failed": EventKind.TOOL_FAILED,
            "unknown": EventKind.CALL_UNKNOWN,
        }[outcome.status]
        return await self._record(call, outcome, kind)

    async def _record(self, call: _Call, outcome: CallOutcome, kind: EventKind, **facts: Any) -> ToolResult:
        error_type = None if outcome.error_type is None else outcome.error_type.value
        facts |= {"status": outcome.status.value, "error_type": error_type, "latency_ms": outcome.latency_ms}
        event = drafted(kind, call.identity, call_id=call.call_id, **facts)
        record = await written(self._journal.close(call.scope.owner, outcome, event=event))
        return result_of(record, call.request.tool_call_id, replayed=False)

    # When the answer was lost

    async def _doubted(
        self,
        record: CallRecord,
        request: ToolRequest,
        identity: CallIdentity,
        *,
        scope: Scope,
        toolset: Toolset,
        approval: Approval | None,
    ) -> ToolResult | Question:
        """An earlier attempt left an intent without an outcome. It was let through then, with just these arguments;
        a denial since then only keeps it from being sent again."""
        sent = dict(record.request["input"])
        try:
            call = self._checked(request, identity, scope=scope, toolset=toolset, args=sent)
        except HoldfastError as error:
            return _in_doubt(record, f"it may not be sent again: {error.message}", may_send=False)
        return await self._reconciled(replace(call, record=record), approval)

    async def _reconciled(self, call: _Call, approval: Approval | None) -> ToolResult | Question:
        """Find out what became of the call, and only then send it again."""
        record = call.record
        assert record is not None, "only a recorded call can be in doubt"
        if call.entry.harmless_twice:
            return await self._sent(await self._again(call, EventKind.TOOL_RETRIED, reason="outcome unknown"))
        if approval is not None and _answers_doubt(approval, record):
            return await self._as_ruled(call, approval)
        if call.entry.reconcile is None:
            return _in_doubt(record, "the tool has no way to look it up")
        return await self._looked_up(call, record)

    async def _looked_up(self, call: _Call, record: CallRecord) -> ToolResult | Question:
        """Ask the tool itself. That it was done is final; that it was not counts only once it cannot arrive late."""
        try:
            found = await self._found(call)
            if found is None:
                wait = call.entry.terms.timeout_seconds + self._grace_seconds
                if wait >= call.scope.deadline.remaining_seconds():
                    return _in_doubt(record, "it has not been done so far, but it may still arrive")
                await asyncio.sleep(wait)
                found = await self._found(call)
        except HoldfastError as error:
            return _in_doubt(record, f"looking it up failed: {error.message}")
        if found is not None:
            outcome = returned(call.call_id, fitted(found, entry=call.entry), 0)
            return await self._record(call, outcome, EventKind.CALL_RECONCILED, by="tool", found="done")
        return await self._sent(await self._again(call, EventKind.CALL_RECONCILED, by="tool", found="not done"))

    async def _found(self, call: _Call) -> Any:
        assert call.entry.reconcile is not None, "asked only where the tool can tell"
        return await _asked(call.entry.reconcile, call.identity.key, seconds=call.timeout_seconds())

    async def _as_ruled(self, call: _Call, approval: Approval) -> ToolResult | Question:
        """What a person said became of the call."""
        match approval.status:
            case ApprovalStatus.APPROVED:
                return await self._sent(
                    await self._again(call, EventKind.CALL_RECONCILED, by=approval.decided_by, found="not done")
                )
            case ApprovalStatus.RESPONDED:
                outcome = returned(call.call_id, fitted(response_in(approval.decision or {}), entry=call.entry), 0)
                found = "done"
            case _:
                given_up = OutcomeUnknown(
                    f"it is not known whether {call.entry.name} was done, and it was given up: "
                    f"{(approval.decision or {}).get('message') or 'nobody could say in time'}",
                    call_id=call.call_id,
                    tool_name=call.entry.name,
                )
                outcome, found = failed(call.call_id, given_up, 0), "given up"
        return await self._record(call, outcome, EventKind.CALL_RECONCILED, by=approval.decided_by, found=found)


def _request_digest(request: ToolRequest) -> str:
    """The digest of what is asked. What is not JSON has one too: it is refused as a call of its own."""
    try:
        return digest({"tool": request.tool_name, "input": request.input})
    except InvalidRequest:
        return digest({"tool": ascii(request.tool_name), "unreadable": ascii(request.input)})


def _require_permitted(entry: Tool, scope: Scope) -> None:
    held = {*scope.tenant.roles, *scope.tenant.data_scopes}
    if missing := [permission for permission in entry.terms.permissions if permission not in held]:
        who = scope.tenant.user_id or "the run's principal"
        raise PolicyDenied(
            f"{who} may not use {entry.name}: that needs {', '.join(missing)}",
            rule="tool.permissions",
            action="call_tool",
            resource=entry.name,
        )


def _facts(entry: Tool, args: Mapping[str, Any], request: ToolRequest, scope: Scope) -> PolicyRequest:
    return PolicyRequest(
        tenant=scope.tenant,
        action="call_tool",
        resource=entry.name,
        agent_name=request.agent_name or scope.agent_name,
        graph_name=scope.graph_name,
        effect=entry.terms.effect,
        idempotent=entry.terms.idempotent,
        autonomy=scope.autonomy,
        args=args,
    )


def _edited(approval: Approval) -> dict[str, Any]:
    action = (approval.decision or {}).get("edited_action") or {}
    return dict(action.get("args") or {})


async def _preview(call: _Call) -> str | None:
    """What the call would do, in the tool's own words. One that fails says so: the person decides all the same."""
    if call.entry.preview is None:
        return None
    try:
        return str(await _asked(call.entry.preview, seconds=call.timeout_seconds(), **call.args))
    except HoldfastError as error:
        return f"(no preview: {error.message})"


async def _asked(function: Any, *args: Any, seconds: float, **arguments: Any) -> Any:
    """What a tool's `reconcile` or `preview` answers in time; a synchronous one is asked in a thread."""
    try:
        async with asyncio.timeout(seconds):
            if inspect.iscoroutinefunction(function):
                return await function(*args, **arguments)
            return await asyncio.to_thread(function, *args, **arguments)
    except Exception as error:
        raise translated(error) from error


def _is_signal(error: BaseException) -> bool:
    return any(f"{kind.__module__}.{kind.__qualname__}" == _SIGNAL for kind in type(error).__mro__)


def _late(call: _Call, seconds: float) -> TimedOut:
    name, cap = call.entry.name, call.entry.terms.timeout_seconds
    if seconds < cap:
        return DeadlineExceeded(
            f"the run's deadline passed before {name} answered", timeout_seconds=seconds, needed_for=name, sent=True
        )
    return TimedOut(f"{name} did not answer within {seconds:g} s", timeout_seconds=seconds, sent=True)


def _since(call: _Call, started: float) -> int:
    return round((call.scope.deadline.clock.monotonic() - started) * 1000)


def _doubt_digest(record: CallRecord) -> str:
    """What a person's word about a lost answer holds for: this call, as often as it was sent then."""
    return digest({"call_id": record.call_id, "sends": record.sends})


def _answers_doubt(approval: Approval, record: CallRecord) -> bool:
    return (
        approval.kind is ApprovalKind.RECONCILE
        and approval.status not in _UNDECIDED
        and approval.args_digest == _doubt_digest(record)
    )


def _in_doubt(record: CallRecord, why: str, *, may_send: bool = True) -> Question:
    """The question what became of a call whose answer was lost."""
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
            f"The answer of {name} was lost, so it may or may not have been done; {why}.{approve} "
            f"Respond: it was done, and this is its result. Reject: give it up; it is recorded as failed."
        ),
        allowed=("approve", "respond", "reject") if may_send else ("respond", "reject"),
        call_id=record.call_id,
    )
