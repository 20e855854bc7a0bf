"""Arithmetic of budgets: what a call may cost at most, what a specialist gets, which limit was passed."""

from decimal import Decimal
from fractions import Fraction
from math import ceil

from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.limits import BudgetState, Limits, Usage
from holdfast.contracts.models import PriceQuote
from holdfast.contracts.money import to_dollars, to_microusd
from holdfast.policies.refusal import LIMITED

_COUNTS = {limit: used for limit, (used, _) in LIMITED.items()}


def reservation(input_tokens: int, max_tokens: int, quote: PriceQuote) -> Usage:
    """The most that one model call may use: its input as estimated, and every output token it is allowed.

    `quote` is the price of just that; an unknown price stays unknown, and is refused under a cost limit.
    """
    return Usage(model_calls=1, tokens_used=input_tokens + max_tokens, cost_usd=_whole_microusd(quote.cost_usd))


def share(state: BudgetState, fraction: float, *, deadline_seconds: float | None = None) -> Limits:
    """The limits of a specialist that gets `fraction` (above 0, at most 1) of what is left of `state`.

    Counts are rounded up, so that a small share of a small rest is still one call; the budget it is cut from holds
    in any case. What is unlimited stays so. Steps are the run's own and are not shared out.
    """
    if not 0 < fraction <= 1:
        raise InvalidRequest(f"a share of a budget is above 0 and at most 1, not {fraction}")
    counts = {name: _part(getattr(state.limits, name), _committed(state, used), fraction) for name, used in _SHARED}
    return Limits(
        deadline_seconds=deadline_seconds, max_steps=None, max_cost_usd=_part_of_cost(state, fraction), **counts
    )


def exceeded(state: BudgetState) -> str | None:
    """The name of a limit that what is *spent* has passed, or None.

    A reservation never passes a limit; a call can use more than it reserved. Spending of unknown price counts as
    past a cost limit: unknown is never zero.
    """
    for limit, used in _COUNTS.items():
        if (most := getattr(state.limits, limit)) is not None and getattr(state.spent, used) > most:
            return limit
    if state.limits.max_cost_usd is None:
        return None
    return "max_cost_usd" if state.spent.cost_usd is None or state.spent.cost_usd > state.limits.max_cost_usd else None


_SHARED = tuple((limit, used) for limit, used in _COUNTS.items() if limit != "max_steps")


def _committed(state: BudgetState, used: str) -> int:
    return int(getattr(state.spent, used)) + int(getattr(state.reserved, used))


def _part(most: int | None, committed: int, fraction: float) -> int | None:
    return None if most is None else ceil(max(0, most - committed) * Fraction(str(fraction)))


def _part_of_cost(state: BudgetState, fraction: float) -> Decimal | None:
    if state.limits.max_cost_usd is None:
        return None
    left = to_microusd(state.remaining_cost_usd())
    return to_dollars(int((left or 0) * Fraction(str(fraction))))


def _whole_microusd(cost: Decimal | None) -> Decimal | None:
    return to_dollars(to_microusd(cost))
