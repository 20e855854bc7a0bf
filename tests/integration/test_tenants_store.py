"""The tenants' terms in Postgres."""

import asyncio

import pytest
from fix_house import DANA, House

from holdfast.contracts.errors import NotFound
from holdfast.contracts.ids import TenantId
from holdfast.contracts.limits import Limits
from holdfast.contracts.tenancy import Principal, Tenant

CORE = TenantId("core")
BUDGET = "select * from budgets where kind = 'tenant' and tenant_id = %s"


async def test_terms_are_read_back_whole(house: House) -> None:
    terms = Tenant(
        tenant_id=CORE,
        defaults=Limits(max_cost_usd="0.25", deadline_seconds=None),
        may_be_unlimited=True,
        budget=Limits(max_cost_usd="10"),
        max_queued=7,
    )
    await house.tenants.put(terms)
    assert await house.tenants.get(CORE) == terms


async def test_changed_terms_keep_the_budget_and_what_was_spent(house: House) -> None:
    await house.tenants.put(Tenant(tenant_id=CORE, budget=Limits(max_cost_usd="1.50", max_tokens=None)))
    before = await house.row(BUDGET, CORE)
    assert (before["max_cost"], before["max_tokens"], before["max_steps"]) == (1_500_000, None, None)
    await house.shift("update budgets set spent_cost = 40, reserved_cost = 2 where tenant_id = %s", CORE)
    await house.tenants.put(Tenant(tenant_id=CORE, budget=Limits(max_cost_usd="2")))
    after = await house.row(BUDGET, CORE)
    assert (after["budget_id"], after["max_cost"]) == (before["budget_id"], 2_000_000)
    assert (after["spent_cost"], after["reserved_cost"]) == (40, 2)


async def test_tenant_without_a_budget_has_one_without_limits(house: House) -> None:
    await house.tenants.put(Tenant(tenant_id=CORE))
    row = await house.row(BUDGET, CORE)
    assert [row[name] for name in ("max_model_calls", "max_tool_calls", "max_tokens", "max_cost")] == [None] * 4


async def test_tenant_put_at_once_from_many_sides_has_one_budget(house: House) -> None:
    await asyncio.gather(*(house.tenants.put(Tenant(tenant_id=CORE)) for _ in range(6)))
    assert await house.scalar("select count(*) from budgets where tenant_id = %s", CORE) == 1


async def test_unknown_tenant_is_not_found(house: House) -> None:
    with pytest.raises(NotFound, match="nobody"):
        await house.tenants.get(TenantId("nobody"))


async def test_principal_sees_the_names_of_its_own_tenants_alone(house: House) -> None:
    assert await house.tenants.names(principal=DANA) == ["acme"]
    assert await house.tenants.names(principal=Principal(user_id="root", tenants=None)) == ["acme", "bolt"]
    assert await house.tenants.names(principal=Principal(user_id="nobody")) == []
