"""The inbox in Postgres, under real concurrency."""

import asyncio

import pytest
from fix_house import DANA, House, event

from holdfast.contracts.approvals import Approval, ApprovalKind, ApprovalStatus, Ruling
from holdfast.contracts.errors import Conflict, InvalidRequest, NotFound
from holdfast.contracts.events import EventKind
from holdfast.contracts.ids import ApprovalId, TenantId
from holdfast.contracts.runs import RunClaim, RunStatus
from holdfast.contracts.tenancy import Principal

ACME = TenantId("acme")
WORKER = Principal(user_id="worker", tenants=None)
STRANGER = Principal(user_id="eve", tenants=(TenantId("bolt"),))


async def parked(house: House, *interrupts: str) -> tuple[RunClaim, list[Approval]]:
    """A run that rests with a person, and what they are asked."""
    await house.runs.admit(house.request())
    claim = await house.claim_one()
    asked = [await house.ask(claim, interrupt_id=name) for name in interrupts or ("interrupt",)]
    await house.runs.rest(claim.owner, next_action="decide", event=event(EventKind.RUN_INTERRUPTED))
    return claim, asked


async def let_approvals_run_out(house: House) -> None:
    await house.shift("update approvals set expires_at = clock_timestamp() - interval '1 second'")


async def test_question_is_read_back_whole(house: House) -> None:
    claim, (asked,) = await parked(house)
    read = await house.approvals.get(ACME, asked.id)
    assert read == asked
    assert (read.kind, read.status, read.args) == (ApprovalKind.TOOL, ApprovalStatus.PENDING, {"amount": "12.00"})
    assert (read.run_id, read.thread_id) == (claim.run_id, claim.run.thread_id)
    assert 604_000 < (read.expires_at - read.created_at).total_seconds() < 605_000


async def test_interrupt_is_asked_once_however_often_its_node_runs(house: House) -> None:
    await house.runs.admit(house.request())
    claim = await house.claim_one()
    answers = await asyncio.gather(*(house.ask(claim) for _ in range(5)))
    assert len({one.id for one in answers}) == 1
    assert (await house.kinds(claim.run_id)).count("approval.asked") == 1


async def test_approvals_are_found_by_interrupt_by_task_by_run_and_by_thread(house: House) -> None:
    claim, (first, second) = await parked(house, "one", "two")
    thread = claim.run.thread_id
    assert await house.approvals.of_interrupt(ACME, thread, "two") == second
    assert await house.approvals.of_interrupt(ACME, thread, "three") is None
    assert await house.approvals.of_task(ACME, thread, "task") == [first, second]
    assert await house.approvals.of_task(ACME, thread, "another") == []
    assert await house.approvals.find(ACME, run_id=claim.run_id) == [first, second]
    assert await house.approvals.find(ACME, thread_key=claim.run.thread_key, limit=1) == [first]
    assert await house.approvals.find(ACME, thread_key="another") == []
    decided = await house.decide(first)
    assert await house.approvals.find(ACME) == [second]
    assert await house.approvals.find(ACME, pending_only=False) == [decided, second]


async def test_decision_puts_the_parked_run_back_in_the_queue(house: House) -> None:
    claim, (asked,) = await parked(house)
    decided = await house.decide(asked)
    assert (decided.status, decided.decided_by, decided.granted_digest) == ("approved", "dana", "d1")
    assert decided.decided_at is not None
    assert decided.decision == {"type": "approve"}
    run = await house.runs.get(ACME, claim.run_id)
    assert (run.status, run.next_action) == (RunStatus.QUEUED, None)
    assert (await house.kinds(claim.run_id))[-2:] == ["approval.decided", "run.queued"]


@pytest.mark.parametrize(
    ("ruling", "status"),
    [
        (Ruling(type="approve"), ApprovalStatus.APPROVED),
        (Ruling(type="edit", args={"amount": "1.00"}), ApprovalStatus.EDITED),
        (Ruling(type="reject", message="no"), ApprovalStatus.REJECTED),
        (Ruling(type="respond", message="ask again"), ApprovalStatus.RESPONDED),
    ],
)
async def test_each_ruling_has_its_status(house: House, ruling: Ruling, status: ApprovalStatus) -> None:
    _, (asked,) = await parked(house)
    assert (await house.decide(asked, ruling=ruling)).status is status


async def test_two_people_who_decide_at_once_get_one_decision_and_one_conflict(house: House) -> None:
    for _ in range(6):
        claim, (asked,) = await parked(house)
        erin = Principal(user_id="erin", tenants=(ACME,))
        answers = await asyncio.gather(
            house.decide(asked, ruling=Ruling(type="approve")),
            house.decide(asked, by=erin, ruling=Ruling(type="reject")),
            return_exceptions=True,
        )
        (winner,) = [one for one in answers if isinstance(one, Approval)]
        (refused,) = [one for one in answers if isinstance(one, Conflict)]
        assert winner.decided_by is not None
        assert winner.decided_by in str(refused)
        assert await house.approvals.get(ACME, asked.id) == winner
        assert (await house.kinds(claim.run_id)).count("approval.decided") == 1
        await house.end(await house.claim_one())


async def test_decisions_on_two_questions_at_once_both_count(house: House) -> None:
    claim, asked = await parked(house, "one", "two")
    await asyncio.gather(*(house.decide(one) for one in asked))
    assert [one.status for one in await house.approvals.find(ACME, pending_only=False)] == ["approved", "approved"]
    assert (await house.kinds(claim.run_id)).count("run.queued") == 1


async def test_decision_that_is_not_allowed_is_refused_and_leaves_the_question_open(house: House) -> None:
    await house.runs.admit(house.request())
    asked = await house.ask(await house.claim_one(), allowed=("approve", "reject"))
    with pytest.raises(InvalidRequest, match="approve, reject"):
        await house.decide(asked, ruling=Ruling(type="edit", args={}))
    assert (await house.approvals.get(ACME, asked.id)).status is ApprovalStatus.PENDING


async def test_approval_is_not_found_for_a_stranger(house: House) -> None:
    _, (asked,) = await parked(house)
    bolt = TenantId("bolt")
    with pytest.raises(NotFound):
        await house.approvals.get(bolt, asked.id)
    with pytest.raises(NotFound):
        await house.decide(asked, by=STRANGER)
    with pytest.raises(NotFound):
        await house.approvals.tenant_of(STRANGER, asked.id)
    with pytest.raises(NotFound):
        await house.decide(asked.model_copy(update={"tenant_id": bolt}), by=STRANGER)
    with pytest.raises(NotFound):
        await house.approvals.tenant_of(DANA, ApprovalId(house.ids.new()))
    with pytest.raises(InvalidRequest, match="is not the id"):
        await house.approvals.get(ACME, ApprovalId("first"))
    assert await house.approvals.tenant_of(DANA, asked.id) == ACME
    assert await house.approvals.tenant_of(WORKER, asked.id) == ACME
    assert await house.approvals.find(bolt, pending_only=False) == []


async def test_overdue_approvals_expire_across_tenants_and_their_runs_go_on(house: House) -> None:
    claim, (asked,) = await parked(house)
    await house.runs.admit(house.request(tenant="bolt"))
    theirs = await house.ask(await house.claim_one())
    assert await house.approvals.expire(principal=WORKER) == []
    await let_approvals_run_out(house)
    (expired,) = await house.approvals.expire(principal=DANA)
    assert (expired.id, expired.status, expired.decided_by) == (asked.id, ApprovalStatus.EXPIRED, None)
    assert (await house.runs.get(ACME, claim.run_id)).status is RunStatus.QUEUED
    assert (await house.kinds(claim.run_id))[-2:] == ["approval.expired", "run.queued"]
    (other,) = await house.approvals.expire(principal=WORKER)
    assert other.id == theirs.id
    running = await house.runs.get(TenantId("bolt"), theirs.run_id)
    assert running.status is RunStatus.RUNNING


async def test_expiry_takes_no_more_than_asked_for(house: House) -> None:
    await parked(house, "one", "two", "three")
    await let_approvals_run_out(house)
    assert len(await house.approvals.expire(principal=WORKER, limit=2)) == 2
    assert len(await house.approvals.expire(principal=WORKER, limit=2)) == 1


async def test_several_workers_that_expire_at_once_expire_each_once(house: House) -> None:
    claim, _ = await parked(house, "one", "two")
    await let_approvals_run_out(house)
    answers = await asyncio.gather(*(house.approvals.expire(principal=WORKER) for _ in range(4)))
    assert sum(len(answer) for answer in answers) == 2
    assert (await house.kinds(claim.run_id)).count("approval.expired") == 2


async def test_decision_that_comes_too_late_is_refused_and_the_expiry_recorded(house: House) -> None:
    claim, (asked,) = await parked(house)
    await let_approvals_run_out(house)
    with pytest.raises(Conflict, match="expired"):
        await house.decide(asked)
    assert (await house.approvals.get(ACME, asked.id)).status is ApprovalStatus.EXPIRED
    assert (await house.runs.get(ACME, claim.run_id)).status is RunStatus.QUEUED
    assert (await house.kinds(claim.run_id))[-2:] == ["approval.expired", "run.queued"]


async def test_decision_and_cancellation_at_once_agree(house: House) -> None:
    for _ in range(6):
        claim, (asked,) = await parked(house)
        decided, cancelled = await asyncio.gather(
            house.decide(asked),
            house.runs.request_cancel(DANA, ACME, claim.run_id, reason="race"),
            return_exceptions=True,
        )
        assert not isinstance(cancelled, BaseException)
        assert (await house.runs.get(ACME, claim.run_id)).status is RunStatus.CANCELLED
        stands = (await house.approvals.get(ACME, asked.id)).status
        assert stands is (ApprovalStatus.APPROVED if isinstance(decided, Approval) else ApprovalStatus.WITHDRAWN)
