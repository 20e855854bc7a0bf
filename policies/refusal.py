"""Whether a budget has room for what is asked, and the refusal when it has not."""

from decimal import Decimal

from holdfast.contracts.errors import BudgetExceeded
from holdfast.contracts.limits import Limits, Usage

_LIMITED = {
    "max_model_calls": ("model_calls", "model calls"),
    "max_tool_calls": ("tool_calls", "tool calls"),
    "max_tokens": ("tokens_used", "tokens"),
    "max_steps": ("steps", "steps"),
}


def refusal(
    budget_id: str, kind: str, *, limits: Limits, spent: Usage, reserved: Usage, requested: Usage
) -> BudgetExceeded | None:
    """The error for the first limit that `requested` would pass, or None when there is room.

    A budget that is already past a limit refuses everything, also what asks nothing of that limit. `spent` and
    `reserved` hold what is known of the cost; a request of unknown cost is refused under a cost limit.
    """
    for limit_name, (used, words) in _LIMITED.items():
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
        kind=kind,
        limit_name=limit_name,
        limit=limit,
        spent=spent,
        reserved=reserved,
        requested=requested,
    )
