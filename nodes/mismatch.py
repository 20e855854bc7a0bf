"""A task that runs again and no longer asks for an effect it had asked for: stopped, and put before a person.

The journal answers for what is asked again. What is *not* asked again has happened all the same, or may have: going on
as if it had not would do something else on top of it. (A model that is not asked again has cost what it has cost.)
"""

import asyncio
from dataclasses import replace

from holdfast.contracts.approvals import Approval, ApprovalKind, ApprovalStatus, Question
from holdfast.contracts.calls import CallIdentity, CallRecord, CallSite
from holdfast.contracts.canonical import digest
from holdfast.contracts.errors import ReplayMismatch
from holdfast.contracts.scope import Scope
from holdfast.contracts.tools import Effect
from holdfast.gateway.recalling import calls_before
from holdfast.nodes.asking import approvals_before, ask, latest
from holdfast.nodes.session import RunSession

_RULE = "replay_mismatch"
_LOOKS, _LOOK_SECONDS = 50, 0.01
"""For so long no person is troubled: what is recorded is answered from memory, so that branches soon catch up."""
_HAPPENED_PERHAPS = frozenset({"returned", "open", "unknown"})


async def require_no_mismatch(
    session: RunSession, scope: Scope, site: CallSite, *, before: CallIdentity | None = None
) -> None:
    """Let the node at `site` go on only if it has asked again for every effect that its earlier runs had asked for, or
    a person has said that what was done may stand. `before` a call that is not recorded, those of the same tool are
    looked at: the call is perhaps one of them, with other arguments.

    Raises `GraphInterrupt` while a person is asked, and `ReplayMismatch` when they say no.
    """
    known = await calls_before(session.store.journal, scope, site)
    recorded = before is not None and before.key in known
    for record in known.values():
        if not _is_missing(record, scope, site) or (before is not None and before.name != record.identity.name):
            continue
        if before is not None and not recorded and await _comes_beside(record, scope, site):
            continue
        await _require_leave(session, scope, site, record, ask_for_it=not recorded)


def _is_missing(record: CallRecord, scope: Scope, site: CallSite) -> bool:
    """Whether it is an effect of this node (a router has its node's task) that was not asked for again."""
    acted = record.identity.kind == "tool" and record.effect is not Effect.READ and record.status in _HAPPENED_PERHAPS
    return acted and record.identity.site.node == site.node and record.identity.key not in scope.identified[site.turn]


async def _require_leave(
    session: RunSession, scope: Scope, site: CallSite, record: CallRecord, *, ask_for_it: bool
) -> None:
    """What a person has answered before has its place in the task's order of questions here again, also before a call
    that has been let through since."""
    question = _question(record)
    identity = replace(record.identity, site=replace(record.identity.site, execution=site.execution))
    asked = await approvals_before(session, scope, identity)
    leave = next((approval for approval in asked if _answers(approval, question)), None)
    if leave is None and not ask_for_it:
        return
    await latest(session, scope, identity)
    if leave is None:
        await ask(question, identity, session=session, scope=scope)
    scope.identified[site.turn].add(identity.key)
    if leave is not None and leave.status is not ApprovalStatus.APPROVED:
        raise ReplayMismatch(
            f"node {scope.node!r} was run again and no longer asks for {record.identity.name}, which it had asked for, "
            "and nobody lets that stand",
            call_id=record.call_id,
            tool_name=record.identity.name,
        )


async def _comes_beside(record: CallRecord, scope: Scope, site: CallSite) -> bool:
    """Whether the call is asked for in a moment: by another branch of the node, which has not had its turn yet."""
    for _ in range(_LOOKS):
        if not _is_missing(record, scope, site):
            return True
        await asyncio.sleep(_LOOK_SECONDS)
    return not _is_missing(record, scope, site)


def _answers(approval: Approval, question: Question) -> bool:
    decided = approval.status not in {ApprovalStatus.PENDING, ApprovalStatus.WITHDRAWN}
    return decided and approval.kind is ApprovalKind.MISMATCH and approval.args_digest == question.args_digest


def _question(record: CallRecord) -> Question:
    name = record.identity.name
    became = "was done" if record.status == "returned" else "may have been done"
    return Question(
        kind=ApprovalKind.MISMATCH,
        tool_name=name,
        args=dict(record.request["input"]),
        args_digest=digest({"mismatch": record.call_id, "sends": record.sends}),
        policy_version=record.policy_version,
        rule=_RULE,
        reason=(
            f"Node {record.identity.site.node} was run again and no longer asks for {name} with these arguments, which "
            f"{became} in an earlier run of it. Approve: let that stand, and go on with what the node asks for now. "
            "Reject: stop the run."
        ),
        allowed=("approve", "reject"),
        call_id=record.call_id,
    )
