"""Why a budget has no room for a call, and why an approval is no grant for it."""

from decimal import Decimal

from holdfast.contracts.approvals import ApprovalStatus
from holdfast.contracts.errors import BudgetExceeded, PolicyDenied
from holdfast.contracts.limits import Limits, Usage

GRANTING = frozenset({ApprovalStatus.APPROVED, ApprovalStatus.EDITED})
"""An approval in one of these states lets its call act, once."""

LIMITED = {
    "max_model_calls": ("model_calls", "model calls"),
    "max_tool_calls": ("tool_calls", "tool calls"),
    "max_tokens": ("tokens_used", "tokens"),
    "max_steps": ("steps", "steps"),
}
"""What each limit that is a count limits: the field of `Usage`, and what it is called in a sentence."""


def refusal(
    budget_id: str, kind: str, *, limits: Limits, spent: Usage, reserved: Usage, requested: Usage
) -> BudgetExceeded | None:
    """The error for the first limit that `requested` would pass, or None when there is room.

    A budget that is already past a limit refuses everything, also what asks nothing of that limit. `spent` and
    `reserved` hold what is known of the cost; a request of unknown cost is refused under a cost limit.
    """
    for limit_name, (used, words) in LIMITED.items():
        limit, wanted = getattr(limits, limit_name), getattr(requested, used)
        before, held = getattr(spent, used), getattr(reserved, used)
        if limit is not None and before + held + wanted > limit:
            return _exceeded(budget_id, kind, limit_name, words, limit, before, held, wanted)
    return _cost_refusal(budget_id, kind, limits, spent, reserved, requested)


def _cost_refusal(
    budget_id: str, kind: str, limits: Limits, spent: Usage, reserved: Usage, requested: Usage
) -> BudgetExceeded | None:
    limit, wanted = limits.max_cost_usd, requested.cost_usd
    before, held = spent.cost_usd or Decimal(0), reserved.cost_usd or Decimal(0)
    if limit is None or (wanted is not None and before + held + wanted <= limit):
        return None
    return _exceeded(budget_id, kind, "max_cost_usd", "dollars", limit, before, held, wanted)


def _exceeded(
    budget_id: str,
    kind: str,
    limit_name: str,
    words: str,
    limit: int | Decimal,
    spent: int | Decimal,
    reserved: int | Decimal,
    requested: int | Decimal | None,
) -> BudgetExceeded:
    asked = "an unknown price" if requested is None else f"{requested} more"
    return BudgetExceeded(
        f"the {kind}'s limit of {limit} {words} ({limit_name}) leaves no room for {asked}: "
        f"{spent} spent, {reserved} reserved by calls under way",
        budget=budget_id,
        budget_kind=kind,
        limit_name=limit_name,
        limit=limit,
        spent=spent,
        reserved=reserved,
        requested=requested,
    )


def grant_refusal(approval_id: str, name: str, *, status: str | None, same_call: bool, used: bool) -> PolicyDenied:
    """The error for a call whose approval is no grant for it (any more). `status` is None when there is none here."""
    if status is None:
        reason = "there is no such approval on its thread"
    elif not same_call:
        reason = "it was given for another call"
    elif used:
        reason = "it has been used, and a grant is used once"
    elif status not in GRANTING:
        reason = f"it is {status}"
    else:
        reason = "it has expired"
    return PolicyDenied(
        f"{name} may not act on approval {approval_id}: {reason}",
        rule="approval.grant",
        action="call_tool",
        resource=name,
        approval_id=approval_id,
    )
