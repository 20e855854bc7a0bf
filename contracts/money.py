"""Money is exact: `Decimal` dollars in the contracts, integer micro-dollars in the store, rounded up."""

from decimal import ROUND_CEILING, Decimal

MICRO = Decimal(1_000_000)


def to_microusd(dollars: Decimal | None) -> int | None:
    """Dollars to whole micro-dollars, rounded up: a limit must never be passed by rounding. Unknown stays None."""
    if not dollars:
        return None if dollars is None else 0
    return int((dollars * MICRO).to_integral_value(rounding=ROUND_CEILING))


def to_dollars(microusd: int | None) -> Decimal | None:
    """Micro-dollars to dollars. Unknown stays None."""
    return None if microusd is None else Decimal(microusd) / MICRO
