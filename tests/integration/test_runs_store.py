"""Runs in Postgres, under real concurrency."""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
from fix_house import DANA, SERVED, House, event

from holdfast.contracts.errors import (
    AdmissionRefused,
    BudgetExceeded,
    Conflict,
    ErrorType,
    InvalidRequest,
    LeaseLost,
    NotFound,
    RuntimeErrorRecord,
)
from holdfast.contracts.events import EventKind
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import RunStatus
from holdfast.contracts.tenancy import Principal, Tenant


async def test_admitted_run_is_read_back_whole(house: House) -> None:
    request = house.request(context={"tone": "kind"}, limits=Limits(deadline_seconds=60, max_cost_usd="0.25"))
    admitted = await house.runs.admit(request)
    run = await house.runs.get(TenantId("acme"), request.run_id)
    assert (run.input, run.context, run.limits) == (b"{}", {"tone": "kind"}, request.limits)
    assert (run.status, run.epoch, run.attempt, run.tenant) == (RunStatus.QUEUED, 0, 0, request.tenant)
    assert admitted.run_id == run.run_id
    assert run.remaining_seconds is not None
    assert 50 < run.remaining_seconds <= 60


async def test_run_without_deadline_has_no_remaining_time_also_while_parked(house: House) -> None:
    request = house.request(limits=Limits(deadline_seconds=None))
    assert (await house.runs.admit(request)).remaining_seconds is None
    claim = await house.claim_one()
    await house.runs.rest(claim.owner, next_action="decide", event=event(EventKind.RUN_INTERRUPTED))
    assert (await house.runs.get(TenantId("acme"), request.run_id)).remaining_seconds is None


async def test_whoever_listens_is_woken_when_a_run_is_admitted_parked_decided_or_ended(house: House) -> None:
    async with asyncio.timeout(20), aclosing(house.database.listen()) as notices:
        await anext(notices)
        await house.runs.admit(house.request())
        await anext(notices)
        claim = await house.claim_one()
        approval = await house.ask(claim)
        await house.runs.rest(claim.owner, next_action="decide", event=event(EventKind.RUN_INTERRUPTED))
        await anext(notices)
        await house.decide(approval)
        await anext(notices)
        await house.end(await house.claim_one())
        await anext(notices)


async def test_same_request_admitted_at_once_from_many_sides_is_one_run(house: House) -> None:
    request = house.request()
    runs = await asyncio.gather(*(house.runs.admit(request) for _ in range(6)))
    assert {run.run_id for run in runs} == {request.run_id}
    assert await house.kinds(request.run_id) == ["run.admitted"]


async def test_run_id_with_another_request_is_a_conflict(house: House) -> None:
    request = house.request()
    await house.runs.admit(request)
    with pytest.raises(Conflict):
        await house.runs.admit(house.request(run_id=request.run_id, input=b'{"other": 1}'))


async def test_run_id_of_another_tenant_is_a_conflict_that_tells_nothing(house: House) -> None:
    request = house.request()
    await house.runs.admit(request)
    with pytest.raises(Conflict) as refused:
        await house.runs.admit(house.request(run_id=request.run_id, tenant="bolt"))
    assert "acme" not in str(refused.value)


async def test_queue_bound_is_exact_when_many_are_admitted_at_once(house: House) -> None:
    await house.tenants.put(Tenant(tenant_id=TenantId("acme"), max_queued=5))
    answers = await asyncio.gather(*(house.runs.admit(house.request()) for _ in range(16)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, AdmissionRefused)]
    assert len(refused) == 11
    assert all(one.facts["retry_after_seconds"] > 0 for one in refused)
    assert len(await house.runs.find(TenantId("acme"))) == 5


async def test_attached_run_is_born_running_and_passes_by_the_queue(house: House) -> None:
    await house.tenants.put(Tenant(tenant_id=TenantId("acme"), max_queued=0))
    run = await house.runs.admit(house.request(attached=True))
    assert (run.status, run.epoch, run.attempt, run.attached) == (RunStatus.RUNNING, 1, 1, True)
    assert await house.leases.claim("w", tenants=None, graphs=SERVED, slots=3, ttl_seconds=30) == ()


async def test_unknown_tenant_is_not_found(house: House) -> None:
    with pytest.raises(NotFound, match="nobody"):
        await house.runs.admit(house.request(tenant="nobody"))


async def test_run_of_another_tenant_is_not_found(house: House) -> None:
    run = await house.runs.admit(house.request())
    with pytest.raises(NotFound):
        await house.runs.get(TenantId("bolt"), run.run_id)
    assert await house.runs.find(TenantId("bolt")) == []
    with pytest.raises(NotFound):
        await house.runs.thread_id(TenantId("bolt"), run.thread_key)
    with pytest.raises(NotFound):
        await house.runs.request_cancel(DANA, TenantId("bolt"), run.run_id, reason="curious")
    stranger = Principal(user_id="eve", tenants=(TenantId("bolt"),))
    with pytest.raises(NotFound):
        await house.runs.request_cancel(stranger, TenantId("acme"), run.run_id, reason="curious")
    with pytest.raises(InvalidRequest, match="not the id of a run"):
        await house.runs.get(TenantId("acme"), RunId("first"))


async def test_tenants_runs_are_found_newest_first_by_thread_and_status(house: House) -> None:
    first, second, other = [await house.runs.admit(house.request(thread_key=key)) for key in ("a", "a", "b")]
    assert first.thread_id == second.thread_id == await house.runs.thread_id(TenantId("acme"), "a")
    assert other.thread_id != first.thread_id
    acme = TenantId("acme")
    assert [run.run_id for run in await house.runs.find(acme)] == [other.run_id, second.run_id, first.run_id]
    assert [run.run_id for run in await house.runs.find(acme, thread_key="a", limit=1)] == [second.run_id]
    await house.runs.request_cancel(DANA, acme, first.run_id, reason="enough")
    found = await house.runs.find(acme, status=RunStatus.CANCELLED)
    assert [run.run_id for run in found] == [first.run_id]


async def test_step_is_counted_once_per_task_and_refused_past_the_limit(house: House) -> None:
    await house.runs.admit(house.request(limits=Limits(max_steps=2)))
    owner = (await house.claim_one()).owner
    started = event(EventKind.NODE_STARTED)
    for task in ("one", "one", "two", "one"):
        assert await house.runs.begin_step(owner, node="work", task_id=task, event=started) is False
    with pytest.raises(BudgetExceeded) as refused:
        await house.runs.begin_step(owner, node="work", task_id="three", event=started)
    assert (refused.value.facts["limit_name"], refused.value.facts["limit"]) == ("max_steps", 2)
    await house.events.append(owner, [])  # what was on its way is there now
    assert (await house.kinds(owner.run_id)).count("node.started") == 4
    assert await house.scalar("select spent_steps from budgets where budget_id = %s", owner.run_id) == 2


async def test_parallel_steps_never_pass_the_limit(house: House) -> None:
    await house.runs.admit(house.request(limits=Limits(max_steps=3)))
    owner = (await house.claim_one()).owner
    started = event(EventKind.NODE_STARTED)
    answers = await asyncio.gather(
        *(house.runs.begin_step(owner, node="work", task_id=f"t{n}", event=started) for n in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, BudgetExceeded) for answer in answers) == 5
    await house.events.append(owner, [])
    assert (await house.kinds(owner.run_id)).count("node.started") == 3


async def test_running_run_that_is_cancelled_is_told_at_its_next_step_and_heartbeat(house: House) -> None:
    run = await house.runs.admit(house.request())
    owner = (await house.claim_one()).owner
    asked = await house.runs.request_cancel(DANA, TenantId("acme"), run.run_id, reason="enough")
    assert (asked.status, asked.cancel_requested) == (RunStatus.RUNNING, True)
    again = await house.runs.request_cancel(DANA, TenantId("acme"), run.run_id, reason="really")
    assert again.status is RunStatus.RUNNING
    assert await house.runs.begin_step(owner, node="n", task_id="t", event=event(EventKind.NODE_STARTED)) is True
    renewed = await house.renew(owner.worker_id, [owner], ttl_seconds=30)
    assert renewed[owner.run_id].held
    assert renewed[owner.run_id].cancel_requested
    assert (await house.kinds(run.run_id)).count("run.cancel_requested") == 1


async def test_queued_run_is_cancelled_at_once_and_never_claimed(house: House) -> None:
    run = await house.runs.admit(house.request())
    cancelled = await house.runs.request_cancel(DANA, TenantId("acme"), run.run_id, reason="enough")
    assert cancelled.status is RunStatus.CANCELLED
    assert cancelled.finished_at is not None
    assert cancelled.cause is not None
    assert cancelled.cause.error_type is ErrorType.CANCELLATION
    assert await house.leases.claim("w", tenants=None, graphs=SERVED, slots=3, ttl_seconds=30) == ()
    assert await house.kinds(run.run_id) == ["run.admitted", "run.cancel_requested", "run.cancelled"]
    with pytest.raises(Conflict, match="cancelled already"):
        await house.runs.request_cancel(DANA, TenantId("acme"), run.run_id, reason="again")


async def test_interrupted_run_that_is_cancelled_takes_its_questions_back(house: House) -> None:
    run = await house.runs.admit(house.request())
    approval = await house.ask(claim := await house.claim_one())
    await house.runs.rest(claim.owner, next_action="decide", event=event(EventKind.RUN_INTERRUPTED))
    await house.runs.request_cancel(DANA, TenantId("acme"), run.run_id, reason="enough")
    assert (await house.approvals.get(TenantId("acme"), approval.id)).status == "withdrawn"
    kinds = await house.kinds(run.run_id)
    assert kinds[-3:] == ["run.cancel_requested", "approval.withdrawn", "run.cancelled"]


async def test_cancel_and_claim_at_once_leave_one_owner_or_none(house: House) -> None:
    for _ in range(8):
        run = await house.runs.admit(house.request())
        claims, cancelled = await asyncio.gather(
            house.leases.claim("w", tenants=None, graphs=SERVED, slots=1, ttl_seconds=30),
            house.runs.request_cancel(DANA, TenantId("acme"), run.run_id, reason="race"),
        )
        stands = await house.runs.get(TenantId("acme"), run.run_id)
        assert stands.cancel_requested
        assert stands.status is (RunStatus.RUNNING if claims else RunStatus.CANCELLED)
        assert cancelled.run_id == run.run_id


async def test_clock_stands_still_while_a_person_is_asked(house: House) -> None:
    run = await house.runs.admit(house.request(limits=Limits(deadline_seconds=100)))
    approval = await house.ask(claim := await house.claim_one())
    await house.shift("update runs set deadline_at = clock_timestamp() + interval '40 seconds'")
    parked = await house.runs.rest(claim.owner, next_action="decide", event=event(EventKind.RUN_INTERRUPTED))
    assert parked is RunStatus.INTERRUPTED
    row = await house.row("select deadline_at, remaining_ms, next_action from runs where run_id = %s", run.run_id)
    assert row["deadline_at"] is None
    assert 39_000 < row["remaining_ms"] <= 40_000
    assert row["next_action"] == "decide"
    await house.decide(approval)
    row = await house.row("select deadline_at, remaining_ms, status from runs where run_id = %s", run.run_id)
    left = (row["deadline_at"] - datetime.now(tz=UTC)).total_seconds()
    assert 35 < left <= 40.1
    assert (row["remaining_ms"], row["status"]) == (None, "queued")


async def test_time_in_the_queue_and_between_attempts_counts(house: House) -> None:
    await house.runs.admit(house.request(limits=Limits(deadline_seconds=100)))
    claim = await house.claim_one()
    await house.shift("update runs set deadline_at = clock_timestamp() + interval '30 seconds'")
    await house.runs.release(claim.owner, event=event(EventKind.RUN_RELEASED))
    left = (await house.claim_one()).run.remaining_seconds
    assert left is not None
    assert 25 < left <= 30


async def test_run_whose_deadline_has_passed_has_nothing_left_rather_than_less(house: House) -> None:
    await house.runs.admit(house.request(limits=Limits(deadline_seconds=0)))
    claim = await house.claim_one()
    assert claim.run.remaining_seconds == 0.0


async def test_run_rests_as_queued_when_someone_decided_during_its_attempt(house: House) -> None:
    run = await house.runs.admit(house.request())
    claim = await house.claim_one()
    await house.decide(await house.ask(claim))
    assert (await house.runs.get(TenantId("acme"), run.run_id)).status is RunStatus.RUNNING
    rested = await house.runs.rest(claim.owner, next_action="decide", event=event(EventKind.RUN_INTERRUPTED))
    assert rested is RunStatus.QUEUED
    again = await house.claim_one()
    assert (again.run.attempt, again.run.next_action) == (2, None)
    # The second attempt began after that decision: unless there is another, it rests with the person.
    await house.ask(again, interrupt_id="second")
    rested = await house.runs.rest(again.owner, next_action="decide", event=event(EventKind.RUN_INTERRUPTED))
    assert rested is RunStatus.INTERRUPTED


async def test_decision_and_rest_at_once_never_leave_a_decided_run_parked(house: House) -> None:
    for _ in range(8):
        run = await house.runs.admit(house.request())
        claim = await house.claim_one()
        approval = await house.ask(claim)
        await asyncio.gather(
            house.runs.rest(claim.owner, next_action="decide", event=event(EventKind.RUN_INTERRUPTED)),
            house.decide(approval),
        )
        assert (await house.runs.get(TenantId("acme"), run.run_id)).status is RunStatus.QUEUED
        await house.end(await house.claim_one())


async def test_finish_ends_once_and_repeating_it_changes_nothing(house: House) -> None:
    run = await house.runs.admit(house.request())
    claim = await house.claim_one()
    approval = await house.ask(claim)
    for _ in range(2):
        await house.end(claim, output={"refunded": True})
    ended = await house.runs.get(TenantId("acme"), run.run_id)
    assert (ended.status, ended.output, ended.worker_id) == (RunStatus.COMPLETED, {"refunded": True}, None)
    assert (await house.kinds(run.run_id))[-2:] == ["approval.withdrawn", "run.completed"]
    assert (await house.approvals.get(TenantId("acme"), approval.id)).status == "withdrawn"
    cause = RuntimeErrorRecord(
        run_id=run.run_id, step_name="n", error_type=ErrorType.TIMEOUT, retryable=False, message="late"
    )
    with pytest.raises(Conflict, match="ended as completed"):
        await house.end(claim, status=RunStatus.FAILED, cause=cause)


async def test_failed_run_keeps_its_typed_cause(house: House) -> None:
    run = await house.runs.admit(house.request())
    cause = RuntimeErrorRecord(
        run_id=run.run_id,
        step_name="work",
        error_type=ErrorType.BUDGET_EXCEEDED,
        retryable=False,
        message="spent",
        metadata={"limit": 1},
    )
    await house.end(await house.claim_one(), status=RunStatus.FAILED, cause=cause)
    assert (await house.runs.get(TenantId("acme"), run.run_id)).cause == cause


async def test_stale_owner_writes_nothing_at_all(house: House) -> None:
    run = await house.runs.admit(house.request())
    stale = await house.claim_one()
    await house.shift("update leases set expires_at = clock_timestamp() - interval '1 second'")
    owner = await house.claim_one("second")
    assert owner.run.epoch == stale.run.epoch + 1
    before = await house.kinds(run.run_id)
    started = event(EventKind.NODE_STARTED)
    for late in (
        house.runs.begin_step(stale.owner, node="n", task_id="t", event=started),
        house.runs.rest(stale.owner, next_action="", event=event(EventKind.RUN_INTERRUPTED)),
        house.runs.release(stale.owner, event=event(EventKind.RUN_RELEASED)),
        house.end(stale),
        house.events.append(stale.owner, [started]),
        house.ask(stale),
    ):
        with pytest.raises(LeaseLost):
            await late
    assert await house.kinds(run.run_id) == before
    assert await house.scalar("select count(*) from approvals") == 0
    assert await house.scalar("select spent_steps from budgets where budget_id = %s", run.run_id) == 0
    assert (await house.runs.get(TenantId("acme"), run.run_id)).worker_id == "second"


async def test_finish_and_a_takeover_at_once_leave_one_truth(house: House) -> None:
    for _ in range(8):
        run = await house.runs.admit(house.request())
        claim = await house.claim_one()
        await house.shift("update leases set expires_at = clock_timestamp() - interval '1 second'")
        ended, taken = await asyncio.gather(
            house.end(claim),
            house.leases.claim("second", tenants=None, graphs=SERVED, slots=1, ttl_seconds=30),
            return_exceptions=True,
        )
        stands = await house.runs.get(TenantId("acme"), run.run_id)
        if taken:
            assert isinstance(ended, LeaseLost)
            assert stands.status is RunStatus.RUNNING
            await house.end(taken[0])
        else:
            assert ended is None
            assert stands.status is RunStatus.COMPLETED


async def test_attached_run_that_rests_goes_on_in_its_host_alone(house: House) -> None:
    run = await house.runs.admit(house.request(attached=True, limits=Limits(deadline_seconds=100)))
    owner = house.attached(run)
    with pytest.raises(Conflict, match="running"):
        await house.runs.reattach(DANA, TenantId("acme"), run.run_id, served_by="1")
    await house.shift("update runs set deadline_at = clock_timestamp() + interval '40 seconds'")
    await house.runs.rest(owner, next_action="decide", event=event(EventKind.RUN_INTERRUPTED))
    await house.shift("update runs set remaining_ms = 7000")
    again = await house.runs.reattach(DANA, TenantId("acme"), run.run_id, served_by="1")
    assert (again.status, again.epoch, again.attempt, again.next_action) == (RunStatus.RUNNING, 2, 2, None)
    assert again.remaining_seconds is not None
    assert 5 < again.remaining_seconds <= 7
    with pytest.raises(LeaseLost):
        await house.events.append(owner, [event(EventKind.NODE_STARTED)])
    await house.events.append(house.attached(again), [event(EventKind.NODE_STARTED)])
    with pytest.raises(NotFound):
        await house.runs.reattach(DANA, TenantId("bolt"), run.run_id, served_by="1")


async def test_attached_run_is_fenced_by_its_own_state(house: House) -> None:
    run = await house.runs.admit(house.request(attached=True))
    owner = house.attached(run)
    started = event(EventKind.NODE_STARTED)
    assert await house.runs.begin_step(owner, node="n", task_id="t", event=started) is False
    await house.runs.finish(owner, RunStatus.COMPLETED, output={}, cause=None, event=event(EventKind.RUN_COMPLETED))
    with pytest.raises(LeaseLost):
        await house.runs.begin_step(owner, node="n", task_id="u", event=started)
