"""The one door for tool calls: journal, policy, grant, intent, send; a call made before is answered from its record."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from holdfast.contracts.approvals import Approval, ApprovalKind, ApprovalStatus, Question, grant_digest
from holdfast.contracts.calls import CallIdentity, CallRecord, Fresh, Recorded, Unknown
from holdfast.contracts.canonical import digest
from holdfast.contracts.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    HoldfastError,
    InvalidRequest,
    NotGoverned,
    PolicyDenied,
)
from holdfast.contracts.events import EventKind
from holdfast.contracts.ids import CallId
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.ports import Dice, Events, Ids, Journal, Ledger
from holdfast.contracts.scope import Scope
from holdfast.contracts.tools import ToolRequest, ToolResult
from holdfast.contracts.verdicts import Decision, Policy, PolicyRequest
from holdfast.gateway.recalling import earlier
from holdfast.gateway.reconciling import Reconciler, asked, in_doubt
from holdfast.gateway.tool_outcomes import ONE_CALL, answered_instead, drafted, refusal, result_of
from holdfast.gateway.tool_sending import Sending, ToolSender
from holdfast.gateway.toolset import Tool, Toolset
from holdfast.policies.refusal import GRANTING
from holdfast.policies.refusal import refusal as budget_refusal
from holdfast.policies.retry import RetryTerms
from holdfast.telemetry.spans import record_tool, tool_span

_UNDECIDED = frozenset({ApprovalStatus.PENDING, ApprovalStatus.WITHDRAWN})


class ToolExecutor:
    """Carries tool calls to their tools, at most once each.

    It never pauses a graph: where a person must decide it returns a `Question`, and is called again with the answer.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        ledger: Ledger,
        events: Events,
        policy: Policy,
        ids: Ids,
        dice: Dice,
        retry: RetryTerms | None = None,
        grace_seconds: float = 5.0,
    ) -> None:
        """`grace_seconds`: how long after its timeout a lost call may still arrive, before it counts as not done."""
        self._journal = journal
        self._ledger = ledger
        self._events = events
        self._policy = policy
        self._ids = ids
        self._sender = ToolSender(journal=journal, events=events, dice=dice, retry=retry or RetryTerms())
        self._reconciler = Reconciler(sender=self._sender, journal=journal, grace_seconds=grace_seconds)

    def identify(self, request: ToolRequest, *, scope: Scope) -> CallIdentity:
        """The identity of this call; each identification counts as another occurrence. Raises `NotGoverned`."""
        scope.require_open(f"tool {request.tool_name!r}")
        if request.run_id != scope.run.run_id:
            raise NotGoverned(
                f"tool {request.tool_name!r} was asked for run {request.run_id} inside run {scope.run.run_id}; "
                "make requests from the scope they run in",
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
        if await earlier(self._journal, scope, identity) is not None:
            return None
        answer = await self._admitted(request, identity, scope=scope, toolset=toolset)
        return None if isinstance(answer, Sending) else answer

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
        name = request.tool_name
        with tool_span(
            scope,
            tool_name=name,
            tool_call_id=request.tool_call_id,
            agent_name=request.agent_name or None,
            arguments=request.input,
        ) as span:
            answer = await self._performed(request, identity, scope, toolset, approval)
            if isinstance(answer, ToolResult):
                record_tool(span, answer, round((clock.monotonic() - started) * 1000), tool_name=name)
            return answer

    async def _performed(
        self, request: ToolRequest, identity: CallIdentity, scope: Scope, toolset: Toolset, approval: Approval | None
    ) -> ToolResult | Question:
        record = await earlier(self._journal, scope, identity)
        if record is not None and record.status in {"returned", "failed"}:
            return await self._replayed(record, request, scope)
        if record is not None:
            return await self._doubted(record, request, identity, scope, toolset, approval)
        if approval is None or approval.kind is not ApprovalKind.TOOL or approval.status in _UNDECIDED:
            answer = await self._admitted(request, identity, scope=scope, toolset=toolset)
        elif approval.status in GRANTING:
            answer = await self._granted(approval, request, identity, scope=scope, toolset=toolset)
        else:
            return answered_instead(approval, request.tool_call_id)
        return await self._opened(answer) if isinstance(answer, Sending) else answer

    async def _replayed(self, record: CallRecord, request: ToolRequest, scope: Scope) -> ToolResult:
        event = drafted(EventKind.TOOL_REPLAYED, record.identity, call_id=record.call_id, status=record.status)
        await self._events.later(scope.owner, [event])
        return result_of(record, request.tool_call_id, replayed=True)

    async def _doubted(
        self,
        record: CallRecord,
        request: ToolRequest,
        identity: CallIdentity,
        scope: Scope,
        toolset: Toolset,
        approval: Approval | None,
    ) -> ToolResult | Question:
        """An earlier attempt left an intent without an outcome. It was let through then, with just the arguments that
        are recorded; a denial since then only keeps it from being sent again."""
        if approval is not None:
            ruled = await self._reconciler.ruled(approval, record, request, scope)
            if ruled is not None:
                return ruled
        try:
            sending = self._checked(request, identity, scope, toolset, args=record.request["input"])
        except DeadlineExceeded as error:
            return await self._refused(request, identity, scope, error)
        except HoldfastError as error:
            return in_doubt(record, f"it may not be sent again: {error.message}", may_send=False)
        return await self._reconciler.settled(sending, record, approval)

    async def _admitted(
        self, request: ToolRequest, identity: CallIdentity, *, scope: Scope, toolset: Toolset
    ) -> Sending | ToolResult | Question:
        """The call, if it needs no one's approval."""
        try:
            sending = self._checked(request, identity, scope, toolset, args=request.input)
        except HoldfastError as error:
            return await self._refused(request, identity, scope, error)
        if sending.verdict.decision is Decision.ALLOW:
            return sending
        await self._require_room(sending)
        return await _question(sending)

    async def _require_room(self, sending: Sending) -> None:
        """Nobody is asked about a call that no budget has room for. What is asked is reserved only when it is made."""
        for budget_id in sending.scope.budgets:
            budget = await self._ledger.state(sending.scope.tenant.tenant_id, budget_id)
            error = budget_refusal(
                budget_id,
                "budget",
                limits=budget.limits,
                spent=budget.spent,
                reserved=budget.reserved,
                requested=ONE_CALL,
            )
            if error is not None:
                await self._sender.over_budget(sending, error)
                raise error

    async def _granted(
        self, approval: Approval, request: ToolRequest, identity: CallIdentity, *, scope: Scope, toolset: Toolset
    ) -> Sending | ToolResult | Question:
        """The call, with the arguments that were approved. A denial wins over the approval; an approval of anything
        else than would be sent now (the policy has changed, say) is none, and the question is asked again."""
        edited = approval.status is ApprovalStatus.EDITED
        given = _edited(approval) if edited else request.input
        try:
            sending = self._checked(request, identity, scope, toolset, args=given)
        except HoldfastError as error:
            return await self._refused(request, identity, scope, error)
        granted = given if edited else sending.args
        if grant_digest(request.tool_name, granted, sending.verdict.policy_version) != approval.granted_digest:
            return await self._admitted(request, identity, scope=scope, toolset=toolset)
        return replace(sending, grant=approval)

    def _checked(
        self, request: ToolRequest, identity: CallIdentity, scope: Scope, toolset: Toolset, *, args: Mapping[str, Any]
    ) -> Sending:
        """The call with policy's verdict on it. Raises what it is refused with."""
        entry = toolset.require(request.tool_name)
        complete = entry.completed(args)
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
        sending = Sending(request=request, identity=identity, scope=scope, entry=entry, args=complete, verdict=verdict)
        sending.timeout_seconds()
        return sending

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

    async def _opened(self, sending: Sending) -> ToolResult | Question:
        """Record the intent, then send."""
        sending.scope.require_ours()
        event = drafted(
            EventKind.TOOL_INTENDED,
            sending.identity,
            tool_call_id=sending.request.tool_call_id,
            effect=sending.entry.terms.effect.value,
            rule=sending.verdict.rule,
        )
        intent = sending.intent(CallId(self._ids.new()))
        try:
            await reach(Mark.INTENT_RECORDING)
            opened = await self._journal.open(sending.scope.owner, intent, event=event)
        except PolicyDenied as error:  # the grant is used, expired, or another call's
            return await self._refused(sending.request, sending.identity, sending.scope, error)
        except BudgetExceeded as error:
            await self._sender.over_budget(sending, error)
            raise
        await reach(Mark.INTENT_RECORDED)
        match opened:
            case Fresh():
                answer = await self._sender.send(sending, opened.record)
                if isinstance(answer, ToolResult):
                    return answer
                return await self._reconciler.settled(sending, answer, None)
            case Recorded():
                return await self._replayed(opened.record, sending.request, sending.scope)
            case Unknown():
                return await self._reconciler.settled(sending, opened.record, None)


def _request_digest(request: ToolRequest) -> str:
    """The digest of what is asked. What is not JSON has one too, of its names: it is refused."""
    try:
        return digest({"tool": request.tool_name, "input": request.input})
    except InvalidRequest:
        return digest({"tool": ascii(request.tool_name), "unreadable": sorted(map(ascii, request.input))})


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


async def _question(sending: Sending) -> Question:
    name, version = sending.entry.name, sending.verdict.policy_version
    return Question(
        kind=ApprovalKind.TOOL,
        tool_name=name,
        args=sending.args,
        args_digest=grant_digest(name, sending.args, version),
        policy_version=version,
        rule=sending.verdict.rule,
        reason=sending.verdict.reason,
        preview=await _preview(sending) if sending.verdict.decision is Decision.PREVIEW else None,
    )


async def _preview(sending: Sending) -> str | None:
    """What the call would do, in the tool's own words. One that fails says so: the person decides all the same."""
    if sending.entry.preview is None:
        return None
    try:
        return str(await asked(sending.entry.preview, seconds=sending.timeout_seconds(), **sending.args))
    except HoldfastError as error:
        return f"(no preview: {error.message})"
