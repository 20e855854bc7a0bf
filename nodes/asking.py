"""Between LangGraph's interrupts and the inbox: a question becomes both, and the answer is the inbox's.

An approval is found by the identity of the call it was asked for. LangGraph's own way, by the order of questions in a
task, would hand one call's answer to another as soon as a re-run asks in another order.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphInterrupt
from langgraph.types import interrupt

from holdfast.contracts.approvals import (
    Approval,
    ApprovalKind,
    ApprovalRequest,
    ApprovalStatus,
    DecisionType,
    Question,
    Ruling,
)
from holdfast.contracts.calls import CallIdentity
from holdfast.contracts.canonical import plain
from holdfast.contracts.errors import Conflict, InvalidRequest
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.scope import Scope, part_of
from holdfast.contracts.tools import ToolRequest, ToolResult
from holdfast.gateway.recalling import earlier
from holdfast.gateway.toolset import Toolset
from holdfast.nodes.place import Answer, answers, interrupt_index, live, pass_question
from holdfast.nodes.session import RunSession
from holdfast.nodes.underway import underway
from holdfast.policies.retention import require_contents
from holdfast.policies.rulings import SAID_NO, granted_digest, recorded_decision
from holdfast.policies.rulings import answer as answer_to
from holdfast.policies.tenancy import require_may_decide
from holdfast.telemetry.spans import traced_event

_SHOWN_CHARACTERS = 200
_NOT_ASKED_AGAIN = "what its people answered is not known when its node runs again; start a new thread"


async def dispatched(
    request: ToolRequest, identity: CallIdentity, *, session: RunSession, scope: Scope, toolset: Toolset
) -> ToolResult:
    """The result of a tool call: at once, or after a person was asked. Raises `GraphInterrupt` while they are."""
    approval = await latest(session, scope, identity)
    await _pass_what_its_body_asked(session, scope, identity)
    result = await session.executor.perform(request, identity, scope=scope, toolset=toolset, approval=approval)
    if isinstance(result, Question):
        await ask(result, identity, session=session, scope=scope)
    return result


async def latest(session: RunSession, scope: Scope, identity: CallIdentity) -> Approval | None:
    """The approval asked last for this call. Each that was asked before has had a place in the task's order of
    questions, and has it again. A grant that has run out unused, or was used for an earlier run, is as good as none:
    the person is asked anew."""
    asked = await approvals_before(session, scope, identity)
    for approval in asked:
        if _is_decided(approval):
            pass_question(answer_to(approval))
    last = asked[-1] if asked else None
    return None if last is None or _ran_out(last) or _used_up(last, session) else last


async def _pass_what_its_body_asked(session: RunSession, scope: Scope, identity: CallIdentity) -> None:
    """A call that is answered from its record asks nothing. What its tool's body has asked has its place in the task's
    order of questions all the same, or its answer would be that of the next question."""
    record = await earlier(session.store.journal, scope, identity)
    if record is None or record.status not in {"returned", "failed"}:
        return
    part, site = part_of(identity), identity.site
    for approval in scope.approvals_before[site.turn]:
        inside = f"{approval.task_id}/".startswith(f"{part}/")
        if inside and _is_decided(approval) and interrupt_index(site.checkpoint_ns, approval.interrupt_id) is not None:
            pass_question(answer_to(approval))


def note_part(session: RunSession, pause: GraphInterrupt, identity: CallIdentity) -> None:
    """Remember that the questions of a pause were asked by the body of this call's tool, or inside of it."""
    _, _, part = part_of(identity).partition("/")
    for question in pause.args[0] if pause.args else ():
        session.asked_in.setdefault(question.id, part)


def _is_decided(approval: Approval) -> bool:
    return approval.status not in (ApprovalStatus.PENDING, ApprovalStatus.WITHDRAWN)


async def approvals_before(session: RunSession, scope: Scope, identity: CallIdentity) -> Sequence[Approval]:
    """What was asked about this call before this run of its task. The task is looked up once, not for each call."""
    site = identity.site
    if site.turn not in scope.approvals_before:
        if session.owner.attached:  # the task may be that of a graph which nobody has governed, and settled for
            await settle_host_answers(session, {"configurable": live()})
        found = await session.approvals.of_task(session.owner.tenant_id, session.owner.thread_id, site.task_id)
        for approval in found:
            require_contents(approval.run_id, approval.contents_pruned_at, _NOT_ASKED_AGAIN)
        scope.approvals_before.setdefault(site.turn, found)
    return [approval for approval in scope.approvals_before[site.turn] if approval.identity_key == identity.key]


def _used_up(approval: Approval, session: RunSession) -> bool:
    """Whether the grant was used by a run that has ended: the run that goes on for it needs one of its own."""
    return approval.used_at is not None and approval.run_id != session.owner.run_id


def _ran_out(approval: Approval) -> bool:
    granted = approval.status in (ApprovalStatus.APPROVED, ApprovalStatus.EDITED) and approval.used_at is None
    return granted and approval.overdue and approval.kind is not ApprovalKind.MISMATCH


async def ask(question: Question, identity: CallIdentity, *, session: RunSession, scope: Scope) -> NoReturn:
    """Pause the task with LangChain's human-in-the-loop request, and put the question into the inbox first."""
    payload = hitl_request(question)
    while True:
        try:
            interrupt(payload)  # what this returns was meant for another question: ours has no answer yet
        except GraphInterrupt as pause:
            request = ApprovalRequest(
                kind=question.kind,
                interrupt_id=pause.args[0][0].id,
                node=scope.node,
                task_id=identity.site.task_id,
                payload=payload,
                allowed=question.allowed,
                tool_name=question.tool_name,
                args=question.args,
                args_digest=question.args_digest,
                policy_version=question.policy_version,
                rule=question.rule,
                call_id=question.call_id,
                identity_key=identity.key,
                expires_in_seconds=session.approval_expires_seconds,
            )
            await _put(session, request)
            await underway().others()  # pausing cancels them, and what was sent must come back first
            raise


def hitl_request(question: Question) -> dict[str, Any]:
    """The question as LangChain's human-in-the-loop middleware puts it, which Studio and agent inboxes know."""
    description = question.reason if question.preview is None else f"{question.reason}\n\n{question.preview}"
    return {
        "action_requests": [{"name": question.tool_name, "args": plain(question.args), "description": description}],
        "review_configs": [{"action_name": question.tool_name, "allowed_decisions": list(question.allowed)}],
    }


def pause_in(error: BaseException) -> GraphInterrupt | None:
    """The pause inside an exception group: `interrupt()` in a child of a TaskGroup, which LangGraph takes for a
    failure. None when something in it really failed."""
    if not isinstance(error, BaseExceptionGroup):
        return None
    pauses, rest = error.split(GraphInterrupt)
    return merged(_leaves(pauses)) if pauses is not None and rest is None else None


def merged(pauses: Sequence[BaseException]) -> GraphInterrupt:
    """One pause for several of one task. Those that LangGraph gave the same id are asked one after the other."""
    questions = {question.id: question for pause in reversed(pauses) for question in reversed(pause.args[0])}
    return GraphInterrupt(tuple(reversed(questions.values())))


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    return [
        leaf
        for inner in group.exceptions
        for leaf in (_leaves(inner) if isinstance(inner, BaseExceptionGroup) else [inner])
    ]


async def ask_for(session: RunSession, pause: GraphInterrupt, *, node: str, task_id: str) -> None:
    """See to it that each interrupt of a pause is in the inbox: a plain `interrupt(value)` of anyone's node too."""
    for question in pause.args[0] if pause.args else ():
        if question.id not in session.asked:
            part = session.asked_in.get(question.id)
            request = ApprovalRequest(
                kind=ApprovalKind.QUESTION,
                interrupt_id=question.id,
                node=node,
                task_id=task_id if part is None else f"{task_id}/{part}",
                payload=_shown(question.value),
                allowed=_allowed(question.value),
                expires_in_seconds=session.approval_expires_seconds,
            )
            await _put(session, request)


async def _put(session: RunSession, request: ApprovalRequest) -> None:
    facts = {"kind": request.kind.value, "interrupt_id": request.interrupt_id, "tool_name": request.tool_name}
    event = traced_event(EventKind.APPROVAL_ASKED, facts, node=request.node, task_id=request.task_id)
    await reach(Mark.APPROVAL_ASKING)
    await session.approvals.stage(session.owner, request, event=event)
    await reach(Mark.APPROVAL_ASKED)
    session.asked.add(request.interrupt_id)


def _shown(value: Any) -> Any:
    """The question's value as the inbox can keep it."""
    try:
        return plain(value)
    except InvalidRequest:
        return {"text": str(value)[:10_000]}


def _allowed(value: Any) -> tuple[DecisionType, ...]:
    """What LangChain's own human-in-the-loop middleware admits; any answer to a plain question."""
    configs = value.get("review_configs") if isinstance(value, Mapping) else None
    named = {kind for config in configs or () for kind in config.get("allowed_decisions", ())}
    known: tuple[DecisionType, ...] = ("approve", "edit", "reject", "respond")
    return tuple(kind for kind in known if kind in named) or known


async def settle_host_answers(session: RunSession, config: RunnableConfig) -> None:
    """In an attached run the host resumes by itself. What it answers is recorded in the inbox, as decided by the
    host's principal, before the node goes on with it."""
    for answer in answers(config):
        approval = await session.approvals.of_interrupt(
            session.owner.tenant_id, session.owner.thread_id, answer.interrupt_id
        )
        if approval is not None and approval.status is ApprovalStatus.PENDING:
            with suppress(Conflict):  # decided meanwhile, perhaps by a call beside this one; that decision stands
                await _decide(session, approval, answer)


async def _decide(session: RunSession, approval: Approval, answer: Answer) -> None:
    principal = session.approver
    if principal is None:
        raise InvalidRequest(f"interrupt {answer.interrupt_id} was answered, but the host has nobody to decide as")
    require_may_decide(principal, approval)
    ruling = _ruling(approval, answer.value)
    await session.approvals.decide(
        principal,
        approval.tenant_id,
        approval.id,
        ruling,
        decision=recorded_decision(approval, ruling),
        granted_digest=granted_digest(approval, ruling),
        event=EventDraft(
            kind=EventKind.APPROVAL_DECIDED,
            node=approval.node,
            task_id=approval.task_id,
            payload={"decision": ruling.type, "by": principal.user_id, "attached": True},
        ),
    )


def _ruling(approval: Approval, value: Any) -> Ruling:
    """The host's answer as a ruling. One to a tool that cannot be read is a no."""
    if approval.kind is ApprovalKind.QUESTION:
        return Ruling(type="respond", value=value)
    decision = _first_decision(value)
    match decision.get("type"):
        case "approve" if "approve" in approval.allowed:
            return Ruling(type="approve")
        case "edit" if "edit" in approval.allowed and isinstance(decision.get("edited_action"), Mapping):
            return Ruling(type="edit", args=dict(decision["edited_action"].get("args") or {}))
        case "respond" if "respond" in approval.allowed:
            return Ruling(type="respond", value=decision.get("value", decision.get("message")))
        case "reject":
            return Ruling(type="reject", message=str(decision.get("message") or SAID_NO))
        case _:
            shown = repr(value)[:_SHOWN_CHARACTERS]
            message = f'The answer {shown} is no decision; one looks like {{"decisions": [{{"type": "approve"}}]}}.'
            return Ruling(type="reject", message=message)


def _first_decision(value: Any) -> dict[str, Any]:
    decisions: Any = value.get("decisions") if isinstance(value, Mapping) else value
    if isinstance(decisions, Sequence) and not isinstance(decisions, str) and decisions:
        decisions = decisions[0]
    return dict(decisions) if isinstance(decisions, Mapping) else {}
