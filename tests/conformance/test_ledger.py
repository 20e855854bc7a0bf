"""What every ledger does."""

import asyncio
from decimal import Decimal

import pytest
from scenes import INTENDED, ONE_TOOL_CALL, RETURNED, UNLIMITED, Scene, event, intent, outcome

from holdfast.contracts.errors import BudgetExceeded, LeaseLost, NotFound
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits, Usage

OPENED = event(EventKind.BUDGET_OPENED)


async def share(scene: Scene, owner, key: str = "history", limits: Limits = UNLIMITED):
    return await scene.store.ledger.open_share(owner, parent=owner.run_id, share_key=key, limits=limits, event=OPENED)


async def test_a_runs_budget_has_its_id_and_its_limits(scene: Scene):
    limits = Limits(max_model_calls=3, max_tool_calls=4, max_tokens=5, max_cost_usd=Decimal("0.000001"), max_steps=6)
    owner = await scene.running(limits=limits)
    state = await scene.budget(owner)
    assert state.limits == limits.model_copy(update={"deadline_seconds": None})
    assert (state.spent, state.reserved) == (Usage(), Usage())


async def test_what_is_unlimited_stays_unlimited(scene: Scene):
    owner = await scene.running(limits=UNLIMITED)
    assert (await scene.budget(owner)).limits == UNLIMITED


async def test_a_tenants_runs_share_a_budget_that_outlives_new_terms(scene: Scene):
    owner = await scene.running(limits=UNLIMITED)
    shared = await scene.store.ledger.tenant_budget("acme")
    paid = intent(owner, budgets=(owner.run_id, shared))
    await scene.store.journal.open(owner, paid, event=INTENDED)
    await scene.store.journal.close(owner, outcome(paid.call_id), event=RETURNED)
    await scene.tenant(budget=Limits(max_tool_calls=1))
    assert await scene.store.ledger.tenant_budget("acme") == shared
    state = await scene.budget(owner, shared)
    assert (state.spent, state.limits.max_tool_calls, state.limits.max_steps) == (ONE_TOOL_CALL, 1, None)
    another = await scene.store.runs.admit(scene.request(limits=UNLIMITED))
    [claim] = await scene.claim()
    assert claim.run_id == another.run_id
    call = intent(claim.owner, budgets=(another.run_id, shared))
    with pytest.raises(BudgetExceeded) as refused:
        await scene.store.journal.open(claim.owner, call, event=INTENDED)
    assert refused.value.facts["budget"] == shared


async def test_a_share_is_opened_once_and_keeps_what_it_spent(scene: Scene):
    owner = await scene.running()
    budget = await share(scene, owner, limits=Limits(max_tool_calls=2))
    paid = intent(owner, budgets=(budget, owner.run_id))
    await scene.store.journal.open(owner, paid, event=INTENDED)
    await scene.store.journal.close(owner, outcome(paid.call_id), event=RETURNED)
    assert await share(scene, owner, limits=Limits(max_tool_calls=9)) == budget
    assert (await scene.budget(owner, budget)).spent == ONE_TOOL_CALL
    assert (await scene.budget(owner, budget)).limits.max_tool_calls == 2
    assert (await scene.kinds(owner)).count("budget.opened") == 1
    assert await share(scene, owner, "policy") != budget


async def test_a_share_needs_a_parent_of_the_tenants_own(scene: Scene):
    owner, stranger = await scene.running(), await scene.running("other")
    with pytest.raises(NotFound):
        await scene.store.ledger.open_share(
            owner, parent=stranger.run_id, share_key="history", limits=UNLIMITED, event=OPENED
        )


async def test_a_share_is_not_opened_for_a_run_that_was_taken_over(scene: Scene):
    owner = await scene.running(ttl=0)
    await scene.claim("worker-2")
    with pytest.raises(LeaseLost):
        await share(scene, owner)


async def test_a_call_is_paid_by_every_budget_of_its_path(scene: Scene):
    owner = await scene.running()
    path = (await share(scene, owner), owner.run_id, await scene.store.ledger.tenant_budget("acme"))
    paid = intent(owner, budgets=path)
    await scene.store.journal.open(owner, paid, event=INTENDED)
    assert [(await scene.budget(owner, one)).reserved for one in path] == [ONE_TOOL_CALL] * 3
    await scene.store.journal.close(owner, outcome(paid.call_id), event=RETURNED)
    assert [(await scene.budget(owner, one)).spent for one in path] == [ONE_TOOL_CALL] * 3


async def test_a_refusal_by_one_budget_of_the_path_touches_none(scene: Scene):
    owner = await scene.running(limits=Limits(max_tool_calls=1))
    budget = await share(scene, owner)
    path = (budget, owner.run_id)
    await scene.store.journal.open(owner, intent(owner, budgets=path), event=INTENDED)
    before = [await scene.budget(owner, one) for one in path]
    with pytest.raises(BudgetExceeded) as refused:
        await scene.store.journal.open(owner, intent(owner, occurrence=1, budgets=path), event=INTENDED)
    assert [await scene.budget(owner, one) for one in path] == before
    facts = refused.value.facts
    assert facts["budget"] == owner.run_id
    assert (facts["limit_name"], facts["limit"]) == ("max_tool_calls", 1)
    assert (facts["spent"], facts["reserved"], facts["requested"]) == (0, 1, 1)
    assert "the run's limit of 1 tool calls" in refused.value.message


@pytest.mark.parametrize(
    ("limits", "asked", "limit_name"),
    [
        (Limits(max_model_calls=0), Usage(model_calls=1), "max_model_calls"),
        (Limits(max_tool_calls=0), Usage(tool_calls=1), "max_tool_calls"),
        (Limits(max_tokens=99), Usage(tokens_used=100), "max_tokens"),
        (Limits(max_cost_usd=Decimal("0.010000")), Usage(cost_usd=Decimal("0.010001")), "max_cost_usd"),
        (Limits(max_cost_usd=Decimal(1000)), Usage(cost_usd=None), "max_cost_usd"),
    ],
)
async def test_each_limit_refuses_what_would_pass_it(scene: Scene, limits, asked, limit_name):
    owner = await scene.running(limits=limits)
    with pytest.raises(BudgetExceeded) as refused:
        await scene.store.journal.open(owner, intent(owner, reservation=asked), event=INTENDED)
    assert refused.value.facts["limit_name"] == limit_name
    assert refused.value.facts["requested"] == next(
        value for name, value in asked if name == {"max_tokens": "tokens_used"}.get(limit_name, limit_name[4:])
    )


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        (Limits(max_tokens=100), Usage(tokens_used=100)),
        (Limits(max_cost_usd=Decimal("0.010001")), Usage(cost_usd=Decimal("0.010001"))),
        (UNLIMITED, Usage(cost_usd=None)),
    ],
)
async def test_what_just_fits_is_let_through(scene: Scene, limits, asked):
    owner = await scene.running(limits=limits)
    await scene.store.journal.open(owner, intent(owner, reservation=asked), event=INTENDED)


async def test_the_cost_of_a_budget_is_unknown_once_a_call_of_unknown_price_was_paid(scene: Scene):
    owner = await scene.running(limits=UNLIMITED)
    for occurrence, cost in enumerate([Decimal("0.25"), None]):
        usage = Usage(model_calls=1, cost_usd=cost)
        paid = intent(owner, occurrence=occurrence, reservation=usage)
        await scene.store.journal.open(owner, paid, event=INTENDED)
        await scene.store.journal.close(owner, outcome(paid.call_id, usage=usage), event=RETURNED)
    assert (await scene.budget(owner)).spent == Usage(model_calls=2, cost_usd=None)


async def test_reservations_at_the_same_time_never_pass_the_limit_together(scene: Scene):
    owner = await scene.running(limits=Limits(max_tool_calls=3))
    budgets = [(await share(scene, owner, key), owner.run_id) for key in ("history", "policy", "fraud", "tone")]
    opened = await asyncio.gather(
        *(
            scene.store.journal.open(owner, intent(owner, occurrence=n, budgets=budgets[n % 4]), event=INTENDED)
            for n in range(8)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(one, BudgetExceeded) for one in opened) == 5
    assert sum(isinstance(one, Exception) for one in opened) == 5
    assert (await scene.budget(owner)).reserved.tool_calls == 3


async def test_another_tenant_finds_no_budget(scene: Scene):
    owner = await scene.running()
    await scene.tenant("other")
    with pytest.raises(NotFound):
        await scene.store.ledger.state("other", owner.run_id)
    with pytest.raises(NotFound):
        await scene.store.ledger.tenant_budget("nobody")


async def test_a_call_is_not_paid_from_another_tenants_budget(scene: Scene):
    owner, stranger = await scene.running(), await scene.running("other")
    with pytest.raises(NotFound):
        await scene.store.journal.open(owner, intent(owner, budgets=(owner.run_id, stranger.run_id)), event=INTENDED)
    assert (await scene.budget(stranger)).reserved == (await scene.budget(owner)).reserved == Usage()
