"""The face that a node's code sees: `runtime.context` in graphs of ours, `holdfast.current()` in anyone's."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from holdfast.contracts.deadline import Deadline
from holdfast.contracts.limits import BudgetState, Limits
from holdfast.contracts.runs import RunIdentity
from holdfast.contracts.scope import current_scope
from holdfast.contracts.tenancy import TenantContext
from holdfast.nodes.doors import Models, Tools
from holdfast.nodes.fanout import Specialist, SpecialistOutcome, fan_out
from holdfast.nodes.session import session_of


class Budget:
    """The budget that pays for what this node does: the run's, or a specialist's share of it."""

    async def state(self) -> BudgetState:
        """Limits, spent and reserved, as the ledger has them now."""
        scope = current_scope("budget.state()")
        return await session_of("budget.state()").ledger.state(scope.run.tenant_id, scope.budgets[0])

    @property
    def limits(self) -> Limits:
        """The limits of the run, or of the specialist that runs here."""
        return current_scope("budget.limits").limits


class _Face:
    @property
    def models(self) -> Models:
        """The door for model calls."""
        return Models(current_scope("context.models"))

    @property
    def tools(self) -> Tools:
        """The door for tool calls."""
        return Tools(current_scope("context.tools"))

    @property
    def deadline(self) -> Deadline:
        """When this must be done; `remaining_seconds()` says how much is left."""
        return current_scope("context.deadline").deadline

    @property
    def budget(self) -> Budget:
        """What may be used and what has been."""
        current_scope("context.budget")
        return Budget()

    @property
    def tenant(self) -> TenantContext:
        """On whose behalf this runs."""
        return current_scope("context.tenant").tenant

    @property
    def run(self) -> RunIdentity:
        """Which run this is."""
        return current_scope("context.run").run

    async def fan_out(
        self, specialists: Sequence[Specialist[Any]], *, limit: int, allow_partial: bool = False
    ) -> list[SpecialistOutcome[Any]]:
        """Run specialists side by side, at most `limit` at once; see `nodes.fanout.fan_out`."""
        return await fan_out(specialists, limit=limit, allow_partial=allow_partial)


class RunContext(_Face, BaseModel):
    """LangGraph's `context_schema` for governed graphs: settings as plain JSON, and the doors as properties.

    Subclass it for settings of your own. Nothing secret belongs here: LangGraph stores it in the clear.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = Field(default="default", description="The model route, or provider:model, for calls that name none.")


class Current(_Face):
    """The face for graphs whose context is their own."""


def current() -> Current:
    """The doors, deadline, budget and tenant of the governed node that runs here; `NotGoverned` outside one."""
    current_scope("holdfast.current()")
    return Current()
