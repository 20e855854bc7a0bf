"""What every store does with a run that goes on from another: a fork on a new thread, a resumed one on the same."""

from dataclasses import replace

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from scenes import FAILED, INTENDED, RETRIED, RETURNED, Scene, event, intent, new_id, outcome, question

from holdfast.checkpoints.saver import saver_for
from holdfast.contracts.approvals import ApprovalStatus
from holdfast.contracts.calls import Fresh, OutcomeStatus, Recorded, Unknown
from holdfast.contracts.errors import Conflict, ErrorType, InvalidRequest, NotFound, PermanentDependency
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits, Usage
from holdfast.contracts.runs import Forked, Owner, Resumed, Run, RunStatus

BROKEN = {"status": OutcomeStatus.FAILED, "error_type": ErrorType.PERMANENT_DEPENDENCY, "error_message": "it is broken"}


@pytest.fixture
def checkpointed(store, request):
    """Writes a checkpoint of a run that is held, where the store keeps them; returns its id."""

    async def write(owner: Owner) -> str:
        checkpoint = empty_checkpoint()
        if request.node.callspec.params["store"] != "memory":
            saver = saver_for(request.getfixturevalue("database"), owner)
            place = {"configurable": {"thread_id": owner.thread_id, "checkpoint_ns": ""}}
            await saver.aput(place, checkpoint, {"source": "input", "step": -1, "parents": {}}, {})
        return checkpoint["id"]

    return write


async def finish(scene: Scene, owner: Owner, status: RunStatus = RunStatus.FAILED) -> None:
    cause = PermanentDependency("it is broken").record(run_id=owner.run_id, step_name="run")
    ended = event(EventKind(f"run.{status}"))
    await scene.store.runs.finish(owner, status, output=None, cause=cause, event=ended)


def forked(scene: Scene, owner: Owner, at: str, **changes):
    origin = Forked(run_id=owner.run_id, checkpoint_id=at, salt="salt", by="olga")
    return scene.request(owner.tenant_id, origin=origin, **changes)


async def resumed(scene: Scene, run: Run, *, worked: float = 0.0, **changes) -> Run:
    origin = Resumed(run_id=run.run_id, worked_seconds=worked, by="olga")
    request = scene.request(run.tenant.tenant_id, run.thread_key, origin=origin, **changes)
    return await scene.store.runs.admit(request)


async def ended(scene: Scene, owner: Owner, status: RunStatus = RunStatus.FAILED) -> Run:
    await finish(scene, owner, status)
    return await scene.store.runs.get(owner.tenant_id, owner.run_id)


async def taken(scene: Scene, run: Run) -> Owner:
    [claim] = [claim for claim in await scene.claim() if claim.run_id == run.run_id]
    return claim.owner


async def test_a_fork_has_a_thread_and_a_salt_of_its_own_and_both_logs_tell_of_it(scene: Scene, checkpointed):
    owner = await scene.running()
    request = forked(scene, owner, await checkpointed(owner))
    fork = await scene.store.runs.admit(request)
    assert fork.thread_id != owner.thread_id
    assert (fork.fork, fork.forked_from, fork.forked_at) == ("salt", owner.run_id, request.origin.checkpoint_id)
    original = await scene.store.runs.get(owner.tenant_id, owner.run_id)
    assert (original.fork, original.forked_from, original.status) == ("", None, RunStatus.RUNNING)
    logs = [await scene.store.events.read(owner.tenant_id, run_id) for run_id in (owner.run_id, fork.run_id)]
    assert [log[-1].kind for log in logs] == [EventKind.RUN_FORKED] * 2
    assert [log[-1].payload["from"] for log in logs] == [owner.run_id] * 2
    assert [log[-1].payload["by"] for log in logs] == ["olga"] * 2
    later = await scene.store.runs.admit(scene.request(owner.tenant_id, fork.thread_key))
    assert (later.fork, later.forked_from) == ("salt", None), "whatever runs on a fork's thread is salted"
    assert (await scene.store.runs.admit(request)).run_id == fork.run_id, "the same request again is the same run"


async def test_a_fork_needs_a_new_thread_and_a_run_of_the_tenant(scene: Scene, checkpointed):
    owner = await scene.running()
    at = await checkpointed(owner)
    taken_key = (await scene.store.runs.get(owner.tenant_id, owner.run_id)).thread_key
    with pytest.raises(Conflict, match="a fork needs a new one"):
        await scene.store.runs.admit(forked(scene, owner, at, thread_key=taken_key))
    await scene.tenant("bolt")
    strangers = replace(forked(scene, owner, at), tenant=scene.request("bolt").tenant)
    with pytest.raises(NotFound):
        await scene.store.runs.admit(strangers)
    assert len(await scene.store.runs.find("acme")) == 1
    assert not await scene.store.runs.find("bolt")


async def test_a_resumed_run_begins_with_what_was_spent_and_may_have_been_spent(scene: Scene):
    owner = await scene.running()
    used, held = intent(owner), intent(owner, occurrence=1)
    for each in (used, held):
        await scene.store.journal.open(owner, each, event=INTENDED)
    await scene.store.journal.close(owner, outcome(used.call_id), event=RETURNED)
    started = event(EventKind.NODE_STARTED, node="refund", task_id="task")
    await scene.store.runs.begin_step(owner, node="refund", task_id="task", event=started)
    lost = outcome(held.call_id, OutcomeStatus.UNKNOWN)
    await scene.store.journal.close(owner, lost, event=event(EventKind.CALL_UNKNOWN))
    run = await resumed(scene, await ended(scene, owner))
    assert (run.resumed_from, run.thread_id, run.status) == (owner.run_id, owner.thread_id, RunStatus.QUEUED)
    budget = await scene.store.ledger.state(owner.tenant_id, run.run_id)
    assert (budget.spent, budget.reserved) == (Usage(tool_calls=2, steps=1), Usage())


async def test_a_resumed_run_has_what_is_left_of_the_deadline(scene: Scene):
    owner = await scene.running()
    run = await resumed(scene, await ended(scene, owner), worked=40.0, limits=Limits(deadline_seconds=100))
    assert 59 < run.remaining_seconds <= 60


async def test_only_the_last_run_of_a_thread_that_failed_or_was_cancelled_is_resumed_and_once(scene: Scene):
    owner = await scene.running()
    run = await scene.store.runs.get(owner.tenant_id, owner.run_id)
    with pytest.raises(Conflict, match="it cannot be resumed yet"):
        await resumed(scene, run)
    await finish(scene, owner)
    second = await resumed(scene, run)
    with pytest.raises(Conflict, match=f"was followed by run {second.run_id}"):
        await resumed(scene, run)
    done = await ended(scene, await taken(scene, second), RunStatus.COMPLETED)
    with pytest.raises(Conflict, match="nothing is left to resume"):
        await resumed(scene, done)
    attached = await scene.store.runs.admit(scene.request(attached=True))
    with pytest.raises(Conflict, match="is attached"):
        await resumed(scene, attached)


async def test_what_returned_answers_the_resumed_run_and_what_failed_for_good_is_opened_anew(scene: Scene):
    owner = await scene.running()
    done, failed = intent(owner), intent(owner, occurrence=1)
    for each, known in ((done, {}), (failed, BROKEN)):
        await scene.store.journal.open(owner, each, event=INTENDED)
        await scene.store.journal.close(owner, outcome(each.call_id, **known), event=FAILED if known else RETURNED)
    assert isinstance(await scene.store.journal.open(owner, failed, event=INTENDED), Recorded), "not within the run"
    own = await taken(scene, await resumed(scene, await ended(scene, owner)))
    again = replace(failed, call_id=new_id(), budgets=(own.run_id,))
    assert isinstance(await scene.store.journal.open(own, done, event=INTENDED), Recorded)
    opened = await scene.store.journal.open(own, again, event=INTENDED)
    assert isinstance(opened, Fresh)
    assert (opened.record.run_id, opened.record.last_run_id) == (owner.run_id, own.run_id)
    await scene.store.journal.close(own, outcome(failed.call_id, **BROKEN), event=FAILED)
    assert isinstance(await scene.store.journal.open(own, again, event=INTENDED), Recorded), "its own failure stands"
    assert (await scene.budget(own)).spent.tool_calls == 3
    assert (await scene.budget(owner)).spent.tool_calls == 2
    assert [call.call_id for call in await scene.store.journal.of_run("acme", own.run_id)] == [failed.call_id]


async def test_a_call_that_was_given_up_unknown_stands(scene: Scene):
    owner = await scene.running()
    call = intent(owner)
    await scene.store.journal.open(owner, call, event=INTENDED)
    given_up = outcome(call.call_id, OutcomeStatus.FAILED, error_type=ErrorType.HUMAN_REQUIRED, error_message="lost")
    await scene.store.journal.close(owner, given_up, event=FAILED)
    own = await taken(scene, await resumed(scene, await ended(scene, owner)))
    assert isinstance(await scene.store.journal.open(own, call, event=INTENDED), Recorded)


async def test_what_is_sent_again_for_an_ended_run_is_paid_by_the_resumed_one(scene: Scene):
    owner = await scene.running()
    call = intent(owner)
    await scene.store.journal.open(owner, call, event=INTENDED)
    lost = outcome(call.call_id, OutcomeStatus.UNKNOWN)
    await scene.store.journal.close(owner, lost, event=event(EventKind.CALL_UNKNOWN))
    own = await taken(scene, await resumed(scene, await ended(scene, owner)))
    assert isinstance(await scene.store.journal.open(own, call, event=INTENDED), Unknown)
    await scene.store.journal.resend(own, call.call_id, reservation=Usage(tool_calls=1), event=RETRIED)
    first, second = await scene.budget(owner), await scene.budget(own)
    assert (first.spent.tool_calls, first.reserved.tool_calls) == (1, 0)
    assert (second.spent.tool_calls, second.reserved.tool_calls) == (1, 1), "what was inherited, and the new send"
    await scene.store.journal.close(own, outcome(call.call_id), event=RETURNED)
    assert (await scene.budget(own)).spent.tool_calls == 2


async def test_a_question_that_was_withdrawn_is_asked_anew_and_one_that_was_answered_is_not(scene: Scene):
    owner = await scene.running()
    withdrawn, answered = question(), question()
    asked = [await scene.asked(owner, interrupt_id=each.interrupt_id) for each in (withdrawn, answered)]
    await scene.decide(asked[1], "respond")
    own = await taken(scene, await resumed(scene, await ended(scene, owner)))
    anew, same = [await scene.asked(own, interrupt_id=each.interrupt_id) for each in (withdrawn, answered)]
    assert (anew.status, anew.run_id) == (ApprovalStatus.PENDING, own.run_id)
    assert anew.id != asked[0].id
    assert (same.id, same.status) == (asked[1].id, ApprovalStatus.RESPONDED)
    kept = await scene.store.approvals.get("acme", asked[0].id)
    assert (kept.status, kept.run_id) == (ApprovalStatus.WITHDRAWN, owner.run_id)
    found = await scene.store.approvals.of_interrupt("acme", own.thread_id, withdrawn.interrupt_id)
    assert found is not None
    assert found.id == anew.id


async def test_a_fork_of_no_checkpoint_or_another_threads_is_refused_and_leaves_nothing(
    scene: Scene, checkpointed, request
):
    if request.node.callspec.params["store"] == "memory":
        pytest.skip("it keeps no checkpoints")
    owner, other = await scene.running(), await scene.running()
    theirs = await checkpointed(other)
    for at in (theirs, "nothing"):
        with pytest.raises(NotFound, match="no checkpoint"):
            await scene.store.runs.admit(forked(scene, owner, at))
    assert len(await scene.store.runs.find("acme")) == 2
    with pytest.raises(InvalidRequest):
        await scene.store.runs.thread_id("acme", "nothing")
