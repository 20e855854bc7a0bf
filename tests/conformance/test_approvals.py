"""What every inbox does."""

import asyncio

import pytest
from scenes import DANA, STRANGER, Scene, event, intent, new_id, question

from holdfast.contracts.approvals import ApprovalKind, ApprovalStatus
from holdfast.contracts.errors import Conflict, InvalidRequest, LeaseLost, NotFound
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import RunStatus
from holdfast.contracts.tenancy import Principal

OVERDUE = 1e-6
"""Seconds that have passed by the next statement."""


async def test_a_question_is_found_as_it_was_asked(scene: Scene):
    owner = await scene.running(thread="a")
    call = intent(owner)
    asked = question(call, args={"amount": 12.5, "to": None}, args_digest="d", policy_version="p", rule="r")
    approval = await scene.store.approvals.ask(owner, asked, event=event(EventKind.APPROVAL_ASKED))
    for name in set(type(asked).model_fields) - {"expires_in_seconds"}:
        assert getattr(approval, name) == getattr(asked, name)
    assert (approval.status, approval.run_id, approval.thread_id) == ("pending", owner.run_id, owner.thread_id)
    assert (approval.expires_at - approval.created_at).total_seconds() == pytest.approx(604_800, abs=5)
    assert await scene.store.approvals.get("acme", approval.id) == approval
    assert await scene.store.approvals.of_interrupt("acme", owner.thread_id, asked.interrupt_id) == approval
    assert list(await scene.store.approvals.of_task("acme", owner.thread_id, asked.task_id)) == [approval]
    assert (await scene.kinds(owner))[-1] == "approval.asked"


async def test_an_interrupt_is_asked_once(scene: Scene):
    owner = await scene.running()
    asked = question()
    first = await scene.store.approvals.ask(owner, asked, event=event(EventKind.APPROVAL_ASKED))
    assert await scene.store.approvals.ask(owner, asked, event=event(EventKind.APPROVAL_ASKED)) == first
    assert (await scene.kinds(owner)).count("approval.asked") == 1


async def test_a_plain_question_may_hold_any_json(scene: Scene):
    owner = await scene.running()
    for payload in ("go on?", ["a", {"b": [1, None]}], None, 7):
        assert (await scene.asked(owner, kind=ApprovalKind.QUESTION, payload=payload)).payload == payload


async def test_a_worker_that_lost_its_run_asks_nothing(scene: Scene):
    owner = await scene.running(ttl=0)
    await scene.claim("worker-2")
    with pytest.raises(LeaseLost):
        await scene.asked(owner)
    assert list(await scene.store.approvals.find("acme")) == []


async def test_the_inbox_lists_what_is_pending_oldest_first(scene: Scene):
    one, two = await scene.running(thread="a"), await scene.running(thread="b")
    asked = [await scene.asked(owner) for owner in (one, two, one)]
    await scene.decide(asked[0], "reject")
    inbox = scene.store.approvals
    assert [a.id for a in await inbox.find("acme")] == [asked[1].id, asked[2].id]
    assert [a.id for a in await inbox.find("acme", pending_only=False)] == [a.id for a in asked]
    assert [a.id for a in await inbox.find("acme", run_id=one.run_id)] == [asked[2].id]
    assert [a.id for a in await inbox.find("acme", thread_key="b")] == [asked[1].id]
    assert list(await inbox.find("acme", thread_key="no such thread")) == []
    assert len(await inbox.find("acme", limit=1)) == 1


@pytest.mark.parametrize(
    ("ruling", "status"),
    [
        ("approve", ApprovalStatus.APPROVED),
        ("edit", ApprovalStatus.EDITED),
        ("reject", ApprovalStatus.REJECTED),
        ("respond", ApprovalStatus.RESPONDED),
    ],
)
async def test_a_decision_says_who_when_and_what_and_queues_the_run(scene: Scene, ruling, status):
    owner = await scene.running(limits=Limits(deadline_seconds=60))
    approval = await scene.asked(owner)
    await scene.rest(owner)
    decided = await scene.decide(approval, ruling, granted="digest")
    assert (decided.status, decided.decided_by, decided.granted_digest) == (status, "dana", "digest")
    assert decided.decision == {"type": ruling}
    assert decided.decided_at is not None
    run = await scene.store.runs.get("acme", owner.run_id)
    assert (run.status, run.next_action) == (RunStatus.QUEUED, None)
    assert (await scene.store.runs.get("acme", owner.run_id)).remaining_seconds < run.remaining_seconds
    assert (await scene.kinds(owner))[-2:] == ["approval.decided", "run.queued"]


async def test_an_approval_is_decided_once(scene: Scene):
    owner = await scene.running()
    approval = await scene.asked(owner)
    outcomes = await asyncio.gather(*(scene.decide(approval) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(one, Conflict) for one in outcomes) == 3
    assert (await scene.kinds(owner)).count("approval.decided") == 1
    with pytest.raises(Conflict, match="dana"):
        await scene.decide(approval, "reject")


async def test_only_what_is_allowed_is_decided(scene: Scene):
    approval = await scene.asked(await scene.running(), allowed=("approve", "reject"))
    with pytest.raises(InvalidRequest):
        await scene.decide(approval, "edit")
    assert (await scene.decide(approval)).status is ApprovalStatus.APPROVED


async def test_a_stranger_neither_sees_nor_decides(scene: Scene):
    owner = await scene.running()
    await scene.tenant("other")
    approval = await scene.asked(owner)
    inbox = scene.store.approvals
    assert await inbox.tenant_of(DANA, approval.id) == "acme"
    for refused in (
        scene.decide(approval, by=STRANGER),
        inbox.tenant_of(STRANGER, approval.id),
        inbox.get("other", approval.id),
        inbox.tenant_of(DANA, new_id()),
    ):
        with pytest.raises(NotFound):
            await refused
    assert list(await inbox.find("other", pending_only=False)) == []
    assert await inbox.of_interrupt("other", owner.thread_id, approval.interrupt_id) is None


async def test_what_is_overdue_expires_and_queues_its_run(scene: Scene):
    owner = await scene.running()
    approval = await scene.asked(owner, expires_in_seconds=OVERDUE)
    waiting = await scene.asked(owner)
    await scene.rest(owner)
    assert list(await scene.store.approvals.expire(principal=STRANGER)) == []
    assert [a.id for a in await scene.store.approvals.expire(principal=DANA)] == [approval.id]
    assert list(await scene.store.approvals.expire(principal=DANA)) == []
    assert (await scene.store.approvals.get("acme", approval.id)).status is ApprovalStatus.EXPIRED
    assert (await scene.store.approvals.get("acme", waiting.id)).status is ApprovalStatus.PENDING
    assert (await scene.store.runs.get("acme", owner.run_id)).status is RunStatus.QUEUED
    assert (await scene.kinds(owner))[-2:] == ["approval.expired", "run.queued"]


async def test_a_decision_that_comes_too_late_is_refused_and_the_expiry_recorded(scene: Scene):
    owner = await scene.running()
    approval = await scene.asked(owner, expires_in_seconds=OVERDUE)
    await scene.rest(owner)
    with pytest.raises(Conflict, match="expired"):
        await scene.decide(approval)
    assert (await scene.store.approvals.get("acme", approval.id)).status is ApprovalStatus.EXPIRED
    assert (await scene.store.runs.get("acme", owner.run_id)).status is RunStatus.QUEUED


async def test_a_principal_of_one_tenant_decides_its_own(scene: Scene):
    approval = await scene.asked(await scene.running())
    kim = Principal(user_id="kim", tenants=("acme",), roles=("approver",))
    assert (await scene.decide(approval, by=kim)).decided_by == "kim"
