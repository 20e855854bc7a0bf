"""What a run, a specialist or a tenant may use, and what it has used."""

from decimal import Decimal
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from holdfast.contracts.money import to_dollars, to_microusd

Dollars = Annotated[Decimal, Field(ge=0, max_digits=18, decimal_places=6)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]


class Usage(BaseModel):
    """What has been used. As a reservation: what a call may use at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_calls: Count = 0
    tool_calls: Count = 0
    tokens_used: Count = 0
    cost_usd: Dollars | None = Decimal(0)
    """None where a price is unknown; unknown is never zero."""
    steps: Count = 0

    @property
    def cost_microusd(self) -> int | None:
        """The cost as the store keeps it."""
        return to_microusd(self.cost_usd)

    def __add__(self, other: "Usage") -> "Usage":
        """Both together; an unknown cost makes the sum's unknown."""
        unknown = self.cost_usd is None or other.cost_usd is None
        return Usage(
            model_calls=self.model_calls + other.model_calls,
            tool_calls=self.tool_calls + other.tool_calls,
            tokens_used=self.tokens_used + other.tokens_used,
            cost_usd=None if unknown else (self.cost_usd or Decimal(0)) + (other.cost_usd or Decimal(0)),
            steps=self.steps + other.steps,
        )


class Limits(BaseModel):
    """The most that may be used. A limit that is left out takes the tenant's default; `None` written out means
    unlimited, and needs the tenant's permission (`Limits.unset` tells the two apart)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    deadline_seconds: Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)] | None = 300.0
    """Working time; the clock stands still while a person is asked."""
    max_model_calls: Count | None = 50
    """Calls of models, repairs and retries included."""
    max_tool_calls: Count | None = 50
    """Calls of tools, retries included."""
    max_tokens: Count | None = 500_000
    """Input and output tokens together."""
    max_cost_usd: Dollars | None = Decimal("1.00")
    """US dollars. While it is set, a model of unknown price is refused."""
    max_steps: Count | None = 100
    """Tasks of the graph; one that is run again is the same step."""

    def over(self, defaults: "Limits") -> Self:
        """These limits, with `defaults` wherever nothing was given."""
        return self.model_copy(update={name: getattr(defaults, name) for name in self.unset})

    @property
    def unset(self) -> frozenset[str]:
        """The names of the limits that were left out."""
        return frozenset(type(self).model_fields) - self.model_fields_set

    @property
    def unlimited(self) -> tuple[str, ...]:
        """The names of the limits that are `None`."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is None)

    @property
    def max_cost_microusd(self) -> int | None:
        """The cost limit as the store keeps it."""
        return to_microusd(self.max_cost_usd)


class BudgetState(BaseModel):
    """A budget as the ledger knows it: its limits, what is spent, and what calls under way have reserved."""

    model_config = ConfigDict(frozen=True)

    limits: Limits
    spent: Usage
    reserved: Usage

    def remaining_cost_usd(self) -> Decimal | None:
        """Dollars not yet spent or reserved; None when the cost is unlimited or what was spent is unknown."""
        spent, reserved = self.spent.cost_microusd, self.reserved.cost_microusd
        if self.limits.max_cost_microusd is None or spent is None or reserved is None:
            return None
        return to_dollars(max(0, self.limits.max_cost_microusd - spent - reserved))
