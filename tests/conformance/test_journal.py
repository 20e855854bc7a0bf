"""What every journal does."""

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest
from scenes import (
    FAILED,
    INTENDED,
    LOST,
    ONE_TOOL_CALL,
    RETRIED,
    RETURNED,
    UNLIMITED,
    Scene,
    intent,
    new_id,
    outcome,
)

from holdfast.contracts.calls import Fresh, OutcomeStatus, Recorded, Unknown
from holdfast.contracts.errors import BudgetExceeded, Conflict, ErrorType, LeaseLost, NotFound, PolicyDenied
from holdfast.contracts.limits import Limits, Usage
from holdfast.contracts.runs import Owner
from holdfast.contracts.tools import Effect

PAID = Usage(model_calls=1, tokens_used=900, cost_usd=Decimal("0.012345"))


async def test_a_first_intent_is_fresh_and_its_budget_reserved(scene: Scene):
    owner = await scene.running()
    opened = await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    assert isinstance(opened, Fresh)
    record = opened.record
    assert (record.call_id, record.status, record.sends, record.run_id) == (wanted.call_id, "open", 1, owner.run_id)
    assert record.identity == wanted.identity
    assert record.request == wanted.request
    assert (await scene.budget(owner)).reserved == ONE_TOOL_CALL
    assert await scene.store.journal.find(owner.tenant_id, owner.thread_id, wanted.identity.key) == record
    assert await scene.store.journal.of_run(owner.tenant_id, owner.run_id) == [record]


async def test_an_intent_and_its_outcome_each_write_their_event_with_the_calls_id(scene: Scene):
    owner = await scene.running()
    await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    await scene.store.journal.close(owner, outcome(wanted.call_id), event=RETURNED)
    events = (await scene.store.events.read(owner.tenant_id, owner.run_id))[2:]
    assert [(e.kind.value, e.call_id) for e in events] == [
        ("tool.intended", wanted.call_id),
        ("tool.returned", wanted.call_id),
    ]


async def test_a_recorded_call_answers_for_itself_and_reserves_nothing(scene: Scene):
    owner = await scene.running()
    await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    closed = await scene.store.journal.close(
        owner, outcome(wanted.call_id, response={"receipt": "R-1", "lines": [1, 2.5, None]}), event=RETURNED
    )
    before = await scene.kinds(owner)
    again = await scene.store.journal.open(owner, replace(wanted, call_id=new_id()), event=INTENDED)
    assert again == Recorded(closed)
    assert again.record.response == {"receipt": "R-1", "lines": [1, 2.5, None]}
    assert (await scene.budget(owner)).reserved == Usage()
    assert await scene.kinds(owner) == before


async def test_closing_settles_what_was_used_and_releases_the_rest(scene: Scene):
    owner = await scene.running()
    reservation = Usage(model_calls=1, tokens_used=4000, cost_usd=Decimal("0.05"))
    await scene.store.journal.open(owner, (wanted := intent(owner, reservation=reservation)), event=INTENDED)
    record = await scene.store.journal.close(owner, outcome(wanted.call_id, usage=PAID), event=RETURNED)
    state = await scene.budget(owner)
    assert (state.spent, state.reserved) == (PAID, Usage())
    assert (record.usage, record.reservation, record.latency_ms) == (PAID, reservation, 7)
    assert record.closed_at is not None


async def test_usage_above_its_reservation_is_recorded_in_full_and_stops_what_follows(scene: Scene):
    owner = await scene.running(limits=Limits(max_tokens=1000))
    small = Usage(model_calls=1, tokens_used=10)
    await scene.store.journal.open(owner, (wanted := intent(owner, reservation=small)), event=INTENDED)
    await scene.store.journal.close(
        owner, outcome(wanted.call_id, usage=Usage(model_calls=1, tokens_used=1500)), event=RETURNED
    )
    assert (await scene.budget(owner)).spent.tokens_used == 1500
    with pytest.raises(BudgetExceeded, match="max_tokens"):
        await scene.store.journal.open(owner, intent(owner, occurrence=1), event=INTENDED)


async def test_an_intent_that_was_left_open_is_unknown_to_whoever_comes_next(scene: Scene):
    owner = await scene.running(ttl=0)
    await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    [claim] = await scene.claim("worker-2")
    opened = await scene.store.journal.open(claim.owner, replace(wanted, call_id=new_id()), event=INTENDED)
    assert isinstance(opened, Unknown)
    assert (opened.record.call_id, opened.record.status) == (wanted.call_id, "open")
    assert (await scene.budget(owner)).reserved == ONE_TOOL_CALL


async def test_an_unknown_outcome_keeps_its_reservation_until_it_is_reconciled(scene: Scene):
    owner = await scene.running()
    await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    lost = await scene.store.journal.close(
        owner, outcome(wanted.call_id, OutcomeStatus.UNKNOWN, error_type=ErrorType.TIMEOUT), event=LOST
    )
    assert (lost.status, lost.usage, lost.closed_at) == ("unknown", Usage(), None)
    assert (await scene.budget(owner)).reserved == ONE_TOOL_CALL
    kinds = await scene.kinds(owner)
    assert await scene.store.journal.close(owner, outcome(wanted.call_id, OutcomeStatus.UNKNOWN), event=LOST) == lost
    assert await scene.kinds(owner) == kinds
    assert isinstance(await scene.store.journal.open(owner, wanted, event=INTENDED), Unknown)
    found = await scene.store.journal.close(owner, outcome(wanted.call_id), event=RETURNED)
    assert (found.status, found.error_type) == ("returned", None)
    assert (await scene.budget(owner)).reserved == Usage()


@pytest.mark.parametrize("second", [OutcomeStatus.RETURNED, OutcomeStatus.FAILED, OutcomeStatus.UNKNOWN])
async def test_an_outcome_that_is_there_stands(scene: Scene, second: OutcomeStatus):
    owner = await scene.running()
    await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    first = await scene.store.journal.close(owner, outcome(wanted.call_id, response={"n": 1}), event=RETURNED)
    kinds = await scene.kinds(owner)
    assert await scene.store.journal.close(owner, outcome(wanted.call_id, second), event=RETURNED) == first
    assert (await scene.budget(owner)).spent == ONE_TOOL_CALL
    assert await scene.kinds(owner) == kinds


@pytest.mark.parametrize(
    ("error_type", "facts", "terms", "opened_again"),
    [
        (ErrorType.RATE_LIMITED, {}, {}, True),
        (ErrorType.TRANSIENT_DEPENDENCY, {}, {}, True),
        (ErrorType.TRANSIENT_DEPENDENCY, {"exception": "httpx.ReadError"}, {}, False),
        (ErrorType.TRANSIENT_DEPENDENCY, {"exception": "httpx.ReadError"}, {"idempotent": True}, True),
        (ErrorType.TIMEOUT, {}, {}, False),
        (ErrorType.TIMEOUT, {}, {"idempotent": True}, True),
        (ErrorType.TIMEOUT, {}, {"effect": Effect.READ}, True),
        (ErrorType.VALIDATION_ERROR, {}, {"idempotent": True}, False),
        (ErrorType.PERMANENT_DEPENDENCY, {}, {"idempotent": True}, False),
    ],
)
async def test_a_recorded_failure_is_opened_again_only_if_it_may_be_tried_again(
    scene: Scene, error_type, facts, terms, opened_again
):
    owner = await scene.running()
    await scene.store.journal.open(owner, (wanted := intent(owner, **terms)), event=INTENDED)
    failure = outcome(
        wanted.call_id, OutcomeStatus.FAILED, error_type=error_type, error_message="no luck", error_facts=facts
    )
    failed = await scene.store.journal.close(owner, failure, event=FAILED)
    assert (failed.error_type, failed.error_message, failed.error_facts) == (error_type, "no luck", facts)
    again = await scene.store.journal.open(owner, replace(wanted, call_id=new_id()), event=INTENDED)
    assert isinstance(again, Fresh if opened_again else Recorded)
    assert again.record.call_id == wanted.call_id


async def test_a_call_that_is_opened_again_keeps_what_its_failed_send_has_used(scene: Scene):
    owner = await scene.running()
    await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    failure = outcome(wanted.call_id, OutcomeStatus.FAILED, usage=PAID, error_type=ErrorType.RATE_LIMITED)
    await scene.store.journal.close(owner, failure, event=FAILED)
    again = await scene.store.journal.open(owner, wanted, event=INTENDED)
    assert (again.record.sends, again.record.status, again.record.usage) == (2, "open", PAID)
    assert (again.record.error_type, again.record.closed_at) == (None, None)
    record = await scene.store.journal.close(owner, outcome(wanted.call_id), event=RETURNED)
    assert record.usage == (await scene.budget(owner)).spent == PAID + ONE_TOOL_CALL


async def test_a_call_that_is_sent_again_counts_what_the_first_send_reserved_as_spent(scene: Scene):
    owner = await scene.running(ttl=0)
    await scene.store.journal.open(owner, (wanted := intent(owner, reservation=PAID)), event=INTENDED)
    [claim] = await scene.claim("worker-2")
    record = await scene.store.journal.resend(claim.owner, wanted.call_id, reservation=ONE_TOOL_CALL, event=RETRIED)
    assert (record.sends, record.status, record.reservation, record.usage) == (2, "open", ONE_TOOL_CALL, PAID)
    state = await scene.budget(owner)
    assert (state.spent, state.reserved) == (PAID, ONE_TOOL_CALL)
    assert (await scene.kinds(owner))[-1] == "tool.retried"


async def test_sending_again_without_room_leaves_everything_as_it_was(scene: Scene):
    owner = await scene.running(limits=Limits(max_tool_calls=1))
    await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    before = await scene.kinds(owner), await scene.budget(owner)
    with pytest.raises(BudgetExceeded):
        await scene.store.journal.resend(owner, wanted.call_id, reservation=ONE_TOOL_CALL, event=RETRIED)
    assert (await scene.kinds(owner), await scene.budget(owner)) == before
    assert (await scene.store.journal.find(owner.tenant_id, owner.thread_id, wanted.identity.key)).sends == 1


async def test_a_call_with_an_outcome_is_not_sent_again(scene: Scene):
    owner = await scene.running()
    await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    await scene.store.journal.close(owner, outcome(wanted.call_id), event=RETURNED)
    with pytest.raises(Conflict):
        await scene.store.journal.resend(owner, wanted.call_id, reservation=ONE_TOOL_CALL, event=RETRIED)


async def test_a_call_of_another_thread_is_not_found(scene: Scene):
    owner, neighbour = await scene.running(), await scene.running()
    await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    with pytest.raises(NotFound):
        await scene.store.journal.close(neighbour, outcome(wanted.call_id), event=RETURNED)
    with pytest.raises(NotFound):
        await scene.store.journal.resend(neighbour, wanted.call_id, reservation=ONE_TOOL_CALL, event=RETRIED)


async def test_another_tenant_finds_no_call(scene: Scene):
    owner = await scene.running()
    await scene.tenant("other")
    await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    assert await scene.store.journal.find("other", owner.thread_id, wanted.identity.key) is None
    assert list(await scene.store.journal.of_run("other", owner.run_id)) == []


async def test_a_worker_whose_run_was_taken_over_leaves_no_trace(scene: Scene):
    stale = await scene.running(ttl=0)
    await scene.store.journal.open(stale, (wanted := intent(stale)), event=INTENDED)
    [claim] = await scene.claim("worker-2")
    before = await scene.kinds(stale), await scene.budget(stale)
    with pytest.raises(LeaseLost):
        await scene.store.journal.open(stale, intent(stale, occurrence=1), event=INTENDED)
    with pytest.raises(LeaseLost):
        await scene.store.journal.close(stale, outcome(wanted.call_id), event=RETURNED)
    with pytest.raises(LeaseLost):
        await scene.store.journal.resend(stale, wanted.call_id, reservation=ONE_TOOL_CALL, event=RETRIED)
    assert (await scene.kinds(stale), await scene.budget(stale)) == before
    [record] = await scene.store.journal.of_run(claim.owner.tenant_id, claim.run_id)
    assert record.status == "open"


async def test_the_same_intent_from_two_tasks_is_fresh_once(scene: Scene):
    owner = await scene.running()
    wanted = [replace(intent(owner), call_id=new_id()) for _ in range(4)]
    opened = await asyncio.gather(*(scene.store.journal.open(owner, one, event=INTENDED) for one in wanted))
    assert sorted(type(one).__name__ for one in opened) == ["Fresh", "Unknown", "Unknown", "Unknown"]
    assert len({one.record.call_id for one in opened}) == 1
    assert (await scene.budget(owner)).reserved == ONE_TOOL_CALL


async def granted(scene: Scene, owner, wanted, ruling="approve", **terms):
    approval = await scene.asked(owner, wanted, **terms)
    return await scene.decide(approval, ruling, granted="digest")


async def test_a_grant_is_used_up_with_the_intent_and_written_down(scene: Scene):
    owner = await scene.running()
    wanted = intent(owner)
    approval = await granted(scene, owner, wanted)
    opened = await scene.store.journal.open(owner, replace(wanted, grant=approval.id), event=INTENDED)
    assert isinstance(opened, Fresh)
    assert (await scene.store.approvals.get(owner.tenant_id, approval.id)).used_at is not None
    assert (await scene.kinds(owner))[-2:] == ["approval.used", "tool.intended"]


async def test_a_call_that_is_opened_again_keeps_its_grant(scene: Scene):
    owner = await scene.running()
    approval = await granted(scene, owner, wanted := intent(owner))
    wanted = replace(wanted, grant=approval.id)
    await scene.store.journal.open(owner, wanted, event=INTENDED)
    failure = outcome(wanted.call_id, OutcomeStatus.FAILED, error_type=ErrorType.RATE_LIMITED)
    await scene.store.journal.close(owner, failure, event=FAILED)
    assert isinstance(await scene.store.journal.open(owner, wanted, event=INTENDED), Fresh)


async def refused(scene: Scene, owner, wanted) -> str:
    before = await scene.kinds(owner), await scene.budget(owner)
    with pytest.raises(PolicyDenied) as denied:
        await scene.store.journal.open(owner, wanted, event=INTENDED)
    assert (await scene.kinds(owner), await scene.budget(owner)) == before
    assert await scene.store.journal.find(owner.tenant_id, owner.thread_id, wanted.identity.key) is None
    return denied.value.message


async def test_a_grant_for_another_call_is_refused(scene: Scene):
    owner = await scene.running()
    approval = await granted(scene, owner, intent(owner))
    other = intent(owner, args={"order_id": "A-1", "amount_usd": "999.00"}, grant=approval.id)
    assert "another call" in await refused(scene, owner, other)


async def test_a_grant_of_another_thread_is_refused(scene: Scene):
    owner, neighbour = await scene.running(), await scene.running()
    approval = await granted(scene, neighbour, intent(neighbour))
    assert "no such approval" in await refused(scene, owner, intent(owner, grant=approval.id))


async def test_a_rejection_is_no_grant(scene: Scene):
    owner = await scene.running()
    approval = await granted(scene, owner, wanted := intent(owner), "reject")
    assert "rejected" in await refused(scene, owner, replace(wanted, grant=approval.id))


async def test_an_undecided_approval_is_no_grant(scene: Scene):
    owner = await scene.running()
    approval = await scene.asked(owner, wanted := intent(owner))
    assert "pending" in await refused(scene, owner, replace(wanted, grant=approval.id))


async def test_a_grant_is_not_used_up_when_there_is_no_budget(scene: Scene):
    owner = await scene.running(limits=Limits(max_tool_calls=0))
    approval = await granted(scene, owner, wanted := intent(owner))
    with pytest.raises(BudgetExceeded):
        await scene.store.journal.open(owner, replace(wanted, grant=approval.id), event=INTENDED)
    assert (await scene.store.approvals.get(owner.tenant_id, approval.id)).used_at is None


async def test_an_attached_run_writes_its_journal_without_a_lease(scene: Scene):
    await scene.tenant()
    run = await scene.store.runs.admit(scene.request(attached=True, limits=UNLIMITED))
    owner = Owner(
        tenant_id="acme",
        run_id=run.run_id,
        thread_id=run.thread_id,
        epoch=run.epoch,
        attempt=run.attempt,
        worker_id="studio",
        attached=True,
    )
    await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    assert (await scene.store.journal.close(owner, outcome(wanted.call_id), event=RETURNED)).status == "returned"
