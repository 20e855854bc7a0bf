"""What every store does with runs."""

from dataclasses import replace
from decimal import Decimal

import pytest
from scenes import DANA, INTENDED, LOST, ONE_TOOL_CALL, STRANGER, Scene, event, intent, outcome

from holdfast.contracts.approvals import ApprovalStatus
from holdfast.contracts.calls import Fresh, OutcomeStatus, Unknown
from holdfast.contracts.errors import (
    AdmissionRefused,
    BudgetExceeded,
    Conflict,
    ErrorType,
    InvalidRequest,
    LeaseLost,
    NotFound,
    RunCancelled,
    RuntimeErrorRecord,
)
from holdfast.contracts.events import EventKind
from holdfast.contracts.ids import RunId
from holdfast.contracts.limits import Limits, Usage
from holdfast.contracts.runs import Owner, Resumed, RunStatus
from holdfast.contracts.tools import Effect

COMPLETED = event(EventKind.RUN_COMPLETED)
RELEASED = event(EventKind.RUN_RELEASED)
ONE_MODEL_CALL = Usage(model_calls=1, tokens_used=40, cost_usd=Decimal("0.02"))
LAST_WORDS = ("model.failed", "tool.failed", "call.unknown")


async def finish(scene: Scene, owner: Owner, status=RunStatus.COMPLETED, *, cause=None, output=None) -> None:
    await scene.store.runs.finish(owner, status, output=output, cause=cause, event=event(EventKind(f"run.{status}")))


def too_late(owner: Owner) -> RuntimeErrorRecord:
    return RuntimeErrorRecord(
        run_id=owner.run_id, step_name="draft", error_type=ErrorType.TIMEOUT, retryable=False, message="too late"
    )


async def begin(scene: Scene, owner: Owner, task_id: str) -> bool:
    started = event(EventKind.NODE_STARTED, node="draft", task_id=task_id)
    return await scene.store.runs.begin_step(owner, node="draft", task_id=task_id, event=started)


async def test_an_admitted_run_waits_with_everything_it_was_given(scene: Scene):
    await scene.tenant()
    request = scene.request(limits=Limits(deadline_seconds=60, max_steps=7), trace_parent="00-aa-bb-01", max_attempts=3)
    run = await scene.store.runs.admit(request)
    assert (run.status, run.epoch, run.attempt, run.worker_id) == (RunStatus.QUEUED, 0, 0, None)
    for name in ("run_id", "thread_key", "tenant", "input", "input_type", "context", "limits", "trace_parent"):
        assert getattr(run, name) == getattr(request, name)
    assert 59 < run.remaining_seconds <= 60
    assert (run.started_at, run.finished_at, run.cancel_requested) == (None, None, False)
    [admitted] = await scene.store.events.read("acme", run.run_id)
    assert (admitted.kind, admitted.seq, admitted.attempt) == (EventKind.RUN_ADMITTED, 1, 0)


async def test_a_run_without_a_deadline_has_no_remaining_time(scene: Scene):
    await scene.tenant()
    run = await scene.store.runs.admit(scene.request(limits=Limits(deadline_seconds=None)))
    assert run.remaining_seconds is None


async def test_the_same_request_is_admitted_once(scene: Scene):
    await scene.tenant()
    request = scene.request()
    first = await scene.store.runs.admit(request)
    assert (await scene.store.runs.admit(request)).run_id == first.run_id
    assert len(await scene.store.events.read("acme", first.run_id)) == 1
    with pytest.raises(Conflict):
        await scene.store.runs.admit(replace(request, input=b"{}"))


async def test_an_unknown_tenant_is_not_served(scene: Scene):
    with pytest.raises(NotFound):
        await scene.store.runs.admit(scene.request("nobody"))


async def test_a_full_queue_says_when_to_come_back(scene: Scene):
    await scene.tenant(max_queued=1)
    await scene.store.runs.admit(scene.request())
    with pytest.raises(AdmissionRefused) as refused:
        await scene.store.runs.admit(scene.request())
    assert refused.value.facts["retry_after_seconds"] > 0
    await scene.store.runs.admit(scene.request(attached=True))


async def test_runs_on_one_thread_share_its_id_and_are_found_newest_first(scene: Scene):
    await scene.tenant()
    runs = [await scene.store.runs.admit(scene.request(thread=key)) for key in ("a", "b", "a")]
    assert runs[0].thread_id == runs[2].thread_id != runs[1].thread_id
    assert await scene.store.runs.thread_id("acme", "a") == runs[0].thread_id
    ids = [run.run_id for run in runs]
    assert [run.run_id for run in await scene.store.runs.find("acme")] == ids[::-1]
    assert [run.run_id for run in await scene.store.runs.find("acme", thread_key="a")] == [ids[2], ids[0]]
    assert [run.run_id for run in await scene.store.runs.find("acme", limit=1)] == [ids[2]]
    assert list(await scene.store.runs.find("acme", status=RunStatus.RUNNING)) == []


async def test_another_tenant_finds_neither_run_nor_thread(scene: Scene):
    owner = await scene.running(thread="a")
    await scene.tenant("other")
    with pytest.raises(NotFound):
        await scene.store.runs.get("other", owner.run_id)
    with pytest.raises(NotFound):
        await scene.store.runs.thread_id("other", "a")
    assert list(await scene.store.runs.find("other")) == []


async def test_a_step_is_counted_once_per_task_and_refused_beyond_the_limit(scene: Scene):
    owner = await scene.running(limits=Limits(max_steps=2))
    for task in ("one", "one", "two", "one"):
        assert await begin(scene, owner, task) is False
    await scene.store.events.append(owner, [])  # what was on its way is there now
    assert (await scene.budget(owner)).spent.steps == 2
    before = await scene.kinds(owner)
    with pytest.raises(BudgetExceeded) as refused:
        await begin(scene, owner, "three")
    facts = refused.value.facts
    assert (facts["limit_name"], facts["limit"], facts["spent"]) == ("max_steps", 2, 2)
    assert await scene.kinds(owner) == before


async def test_a_finished_run_keeps_its_end_and_nothing_reopens_it(scene: Scene):
    owner = await scene.running()
    cause = too_late(owner)
    await finish(scene, owner, RunStatus.FAILED, cause=cause, output={"so": "far"})
    run = await scene.store.runs.get("acme", owner.run_id)
    assert (run.status, run.cause, run.output, run.worker_id) == (RunStatus.FAILED, cause, {"so": "far"}, None)
    assert run.finished_at is not None
    await finish(scene, owner, RunStatus.FAILED, cause=cause)
    assert (await scene.kinds(owner)).count("run.failed") == 1
    with pytest.raises(Conflict):
        await finish(scene, owner)
    with pytest.raises(LeaseLost):
        await begin(scene, owner, "late")
    assert list(await scene.claim()) == []


async def test_a_run_does_not_end_as_something_that_is_no_end(scene: Scene):
    owner = await scene.running()
    with pytest.raises(InvalidRequest):
        await scene.store.runs.finish(owner, RunStatus.QUEUED, output=None, cause=None, event=COMPLETED)


async def test_a_run_that_ends_withdraws_what_it_still_asks(scene: Scene):
    owner = await scene.running()
    approval = await scene.asked(owner)
    await finish(scene, owner)
    assert (await scene.store.approvals.get("acme", approval.id)).status is ApprovalStatus.WITHDRAWN
    assert (await scene.kinds(owner))[-2:] == ["approval.withdrawn", "run.completed"]


async def lost_on_the_way(scene: Scene) -> Owner:
    """Who has taken a run over from a worker that was lost with a model, a lookup and an effect under way."""
    lost = await scene.running(ttl=0)
    paying = (lost.run_id, await scene.store.ledger.tenant_budget("acme"))
    reads = {"effect": Effect.READ, "idempotent": True, "budgets": paying}
    asking = intent(lost, "scripted:m", reservation=ONE_MODEL_CALL, **reads)
    asking = replace(asking, identity=replace(asking.identity, kind="model"))
    await scene.store.journal.open(lost, asking, event=event(EventKind.MODEL_INTENDED))
    await scene.store.journal.open(lost, intent(lost, "look_up", **reads), event=INTENDED)
    await scene.store.journal.open(lost, intent(lost, budgets=paying), event=INTENDED)
    [claim] = await scene.claim("worker-2")
    return claim.owner


async def require_settled(scene: Scene, owner: Owner) -> None:
    """That of what was under way only the effect is in doubt, and that only it holds a reservation."""
    calls = {call.identity.name: call for call in await scene.store.journal.of_run("acme", owner.run_id)}
    asked, looked_up, effect = calls["scripted:m"], calls["look_up"], calls["issue_refund"]
    assert (asked.status, asked.error_type, asked.usage) == ("failed", ErrorType.TRANSIENT_DEPENDENCY, ONE_MODEL_CALL)
    assert (looked_up.status, looked_up.usage) == ("failed", ONE_TOOL_CALL)
    assert asked.closed_at is not None
    assert (effect.status, effect.closed_at, effect.usage) == ("unknown", None, Usage())
    for budget_id in (owner.run_id, await scene.store.ledger.tenant_budget("acme")):
        state = await scene.budget(owner, budget_id)
        assert (state.spent, state.reserved) == (ONE_MODEL_CALL + ONE_TOOL_CALL, ONE_TOOL_CALL)
    kinds = await scene.kinds(owner)
    assert [kinds.count(kind) for kind in LAST_WORDS] == [1, 1, 1]


async def test_a_run_that_ends_with_calls_under_way_counts_what_was_only_read_and_doubts_the_effect(scene: Scene):
    owner = await scene.running()
    await scene.store.journal.open(owner, intent(owner), event=INTENDED)
    await scene.store.journal.open(owner, intent(owner, "look_up", effect=Effect.READ), event=INTENDED)
    await finish(scene, owner)
    calls = {call.identity.name: call.status for call in await scene.store.journal.of_run("acme", owner.run_id)}
    assert calls == {"issue_refund": "unknown", "look_up": "failed"}
    assert sorted((await scene.kinds(owner))[-3:-1]) == ["call.unknown", "tool.failed"]
    state = await scene.budget(owner)
    assert (state.spent.tool_calls, state.reserved.tool_calls) == (1, 1)


@pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED])
async def test_a_run_that_ends_after_a_takeover_settles_what_the_lost_attempt_left_open(scene: Scene, status):
    owner = await lost_on_the_way(scene)
    cause = too_late(owner) if status is RunStatus.FAILED else None
    await finish(scene, owner, status, cause=cause)
    await require_settled(scene, owner)


async def test_a_run_that_is_cancelled_while_it_rests_settles_what_a_lost_attempt_left_open(scene: Scene):
    owner = await lost_on_the_way(scene)
    await scene.asked(owner)
    await scene.rest(owner)
    await scene.store.runs.request_cancel(DANA, "acme", owner.run_id, reason="enough")
    await require_settled(scene, owner)


async def test_what_was_read_and_given_up_is_settled_too_when_the_run_ends(scene: Scene):
    owner = await scene.running()
    looked_up = intent(owner, "look_up", effect=Effect.READ)
    await scene.store.journal.open(owner, looked_up, event=INTENDED)
    await scene.store.journal.close(owner, outcome(looked_up.call_id, OutcomeStatus.UNKNOWN), event=LOST)
    await finish(scene, owner)
    [call] = await scene.store.journal.of_run("acme", owner.run_id)
    assert (call.status, call.usage) == ("failed", ONE_TOOL_CALL)
    assert (await scene.budget(owner)).reserved == Usage()


async def test_the_resumed_run_makes_a_call_anew_that_its_origin_was_charged_for(scene: Scene):
    owner = await lost_on_the_way(scene)
    await finish(scene, owner, RunStatus.CANCELLED)
    origin = await scene.store.runs.get("acme", owner.run_id)
    resumed = scene.request(thread=origin.thread_key, origin=Resumed(run_id=owner.run_id, worked_seconds=0, by="dana"))
    await scene.store.runs.admit(resumed)
    [claim] = await scene.claim()
    again = intent(owner, "look_up", effect=Effect.READ, budgets=(claim.run_id,))
    opened = await scene.store.journal.open(claim.owner, again, event=INTENDED)
    assert isinstance(opened, Fresh)
    assert opened.record.sends == 2
    doubted = await scene.store.journal.open(claim.owner, intent(owner, budgets=(claim.run_id,)), event=INTENDED)
    assert isinstance(doubted, Unknown)


async def test_a_released_run_waits_for_the_next_worker(scene: Scene):
    owner = await scene.running()
    await scene.store.runs.release(owner, event=RELEASED)
    run = await scene.store.runs.get("acme", owner.run_id)
    assert (run.status, run.worker_id, run.attempt) == (RunStatus.QUEUED, None, 1)
    [claim] = await scene.claim("worker-2")
    assert (claim.run.epoch, claim.run.attempt) == (2, 2)
    with pytest.raises(LeaseLost):
        await scene.store.runs.release(owner, event=RELEASED)


async def test_a_parked_run_holds_no_lease_and_its_clock_stands_still(scene: Scene):
    owner = await scene.running(limits=Limits(deadline_seconds=60))
    await scene.asked(owner)
    assert await scene.rest(owner) is RunStatus.INTERRUPTED
    first = await scene.store.runs.get("acme", owner.run_id)
    second = await scene.store.runs.get("acme", owner.run_id)
    assert first.remaining_seconds == second.remaining_seconds
    assert (first.worker_id, first.next_action) == (None, "decide")
    assert list(await scene.claim()) == []
    with pytest.raises(LeaseLost):
        await scene.rest(owner)


async def test_a_run_parks_into_the_queue_when_somebody_decided_meanwhile(scene: Scene):
    owner = await scene.running()
    await scene.decide(await scene.asked(owner))
    assert await scene.rest(owner) is RunStatus.QUEUED
    assert [claim.run_id for claim in await scene.claim()] == [owner.run_id]


async def test_a_decision_of_an_earlier_attempt_does_not_wake_a_later_one(scene: Scene):
    owner = await scene.running()
    approval = await scene.asked(owner)
    await scene.rest(owner)
    await scene.decide(approval)
    [claim] = await scene.claim()
    await scene.asked(claim.owner)
    assert await scene.rest(claim.owner) is RunStatus.INTERRUPTED


async def test_cancelling_a_waiting_run_ends_it_at_once(scene: Scene):
    await scene.tenant()
    run = await scene.store.runs.admit(scene.request())
    cancelled = await scene.store.runs.request_cancel(DANA, "acme", run.run_id, reason="changed my mind")
    assert cancelled.status is RunStatus.CANCELLED
    assert cancelled.cause.error_type is ErrorType.CANCELLATION
    assert "changed my mind" in cancelled.cause.message
    kinds = [e.kind.value for e in await scene.store.events.read("acme", run.run_id)]
    assert kinds == ["run.admitted", "run.cancel_requested", "run.cancelled"]
    with pytest.raises(Conflict):
        await scene.store.runs.request_cancel(DANA, "acme", run.run_id, reason="again")


async def test_cancelling_a_parked_run_withdraws_its_question(scene: Scene):
    owner = await scene.running()
    approval = await scene.asked(owner)
    await scene.rest(owner)
    await scene.store.runs.request_cancel(DANA, "acme", owner.run_id, reason="no")
    assert (await scene.store.approvals.get("acme", approval.id)).status is ApprovalStatus.WITHDRAWN
    assert (await scene.kinds(owner))[-3:] == ["run.cancel_requested", "approval.withdrawn", "run.cancelled"]


async def test_cancelling_a_working_run_tells_its_worker(scene: Scene):
    owner = await scene.running()
    run = await scene.store.runs.request_cancel(DANA, "acme", owner.run_id, reason="stop")
    assert (run.status, run.cancel_requested) == (RunStatus.RUNNING, True)
    assert await begin(scene, owner, "one") is True
    renewed = await scene.renew("worker-1", [owner], ttl_seconds=60)
    assert renewed[owner.run_id].cancel_requested
    await scene.store.runs.request_cancel(DANA, "acme", owner.run_id, reason="stop!")
    assert (await scene.kinds(owner)).count("run.cancel_requested") == 1


async def test_cancelled_run_does_not_rest_with_a_person(scene: Scene):
    owner = await scene.running()
    await scene.asked(owner)
    await scene.store.runs.request_cancel(DANA, "acme", owner.run_id, reason="stop")
    assert await scene.rest(owner) is RunStatus.QUEUED
    [claim] = await scene.claim()
    assert claim.run.cancel_requested


async def test_cancelled_run_names_who_wanted_it_to_stop(scene: Scene):
    owner = await scene.running()
    await scene.store.runs.request_cancel(DANA, "acme", owner.run_id, reason="changed my mind")
    cause = RunCancelled("it was asked to").record(run_id=owner.run_id, step_name="run")
    await finish(scene, owner, RunStatus.CANCELLED, cause=cause)
    ended = (await scene.store.runs.get("acme", owner.run_id)).cause
    assert ended.message == "cancelled by 'dana': changed my mind"
    assert (ended.metadata["by"], ended.metadata["reason"]) == ("dana", "changed my mind")


async def test_statuses_are_of_the_tenants_own_runs_alone(scene: Scene):
    await scene.tenant()
    await scene.tenant("bolt")
    owner, waiting = await scene.running(), await scene.store.runs.admit(scene.request())
    nobody = RunId("01a2034f-63f6-74d0-8666-02c685a47745")
    statuses = await scene.store.runs.statuses("acme", [owner.run_id, waiting.run_id, nobody])
    assert statuses == {owner.run_id: RunStatus.RUNNING, waiting.run_id: RunStatus.QUEUED}
    assert await scene.store.runs.statuses("bolt", [owner.run_id]) == {}


async def test_a_stranger_cancels_nothing(scene: Scene):
    owner = await scene.running()
    with pytest.raises(NotFound):
        await scene.store.runs.request_cancel(STRANGER, "acme", owner.run_id, reason="mischief")


async def test_an_attached_run_is_born_running_and_claimed_by_nobody(scene: Scene):
    await scene.tenant()
    run = await scene.store.runs.admit(scene.request(attached=True))
    assert (run.status, run.attached, run.epoch, run.attempt) == (RunStatus.RUNNING, True, 1, 1)
    assert list(await scene.claim()) == []
