"""The contents that every store prunes: the words of runs, calls and approvals. The facts stay."""

from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenes import (
    DANA,
    FAILED,
    INTENDED,
    LOST,
    ONE_TOOL_CALL,
    RETRIED,
    RETURNED,
    Scene,
    event,
    intent,
    new_id,
    outcome,
)
from stores import memory_store

from holdfast.contracts.calls import OutcomeStatus
from holdfast.contracts.errors import ContentsPruned, ErrorType, PolicyDenied
from holdfast.contracts.events import EventKind
from holdfast.contracts.runs import Forked, Owner, Resumed, Run, RunStatus
from holdfast.contracts.tenancy import RetentionTerms
from holdfast.runtime.verification import verified

AT_ONCE = RetentionTerms(contents_days=0)
ENDS = {
    RunStatus.COMPLETED: EventKind.RUN_COMPLETED,
    RunStatus.FAILED: EventKind.RUN_FAILED,
    RunStatus.CANCELLED: EventKind.RUN_CANCELLED,
}
REFUSED = PolicyDenied("no refund for bo@example.com", rule="refunds", resource="bo@example.com")
NOTHING_IN_CALLS = ({}, None, None, {})
NOTHING_IN_APPROVALS = (None, None, None)


async def works(scene: Scene, owner: Owner) -> None:
    """A call that returns, one that fails, and one that a person edits."""
    journal = scene.store.journal
    for number, ended in enumerate((OutcomeStatus.RETURNED, OutcomeStatus.FAILED)):
        call = intent(owner, occurrence=number)
        await journal.open(owner, call, event=INTENDED)
        if ended is OutcomeStatus.RETURNED:
            await journal.close(owner, outcome(call.call_id, response={"refund": "r-1"}), event=RETURNED)
        else:
            trouble = {"error_type": ErrorType.POLICY_DENIED, "error_message": "no", "error_facts": {"rule": "r"}}
            await journal.close(owner, outcome(call.call_id, ended, **trouble), event=FAILED)
    asked = await scene.asked(owner, call := intent(owner, occurrence=2), args={"order": "A-1"}, args_digest="d")
    await scene.decide(asked, granted="d")
    await journal.open(owner, replace(call, grant=asked.id), event=INTENDED)
    await journal.close(owner, outcome(call.call_id, response={"refund": "r-2"}), event=RETURNED)


async def ends(scene: Scene, owner: Owner, status: RunStatus = RunStatus.COMPLETED) -> Owner:
    failed = status is RunStatus.FAILED
    cause = REFUSED.record(run_id=owner.run_id, step_name="refund") if failed else None
    kind = ENDS[status]
    await scene.store.runs.finish(owner, status, output={"reply": "sent"}, cause=cause, event=event(kind))
    return owner


async def ended(scene: Scene, status: RunStatus = RunStatus.COMPLETED, **changes) -> Owner:
    """A run that has worked and has ended."""
    owner = await scene.running(**changes)
    await works(scene, owner)
    return await ends(scene, owner, status)


async def prune(scene: Scene, *, at_most: int = 10_000, **terms) -> dict[str, int]:
    """How many rows of each run lose their contents in one round."""
    await scene.tenant(**({"retention": AT_ONCE} | terms))
    pruned = await scene.store.retention.prune("acme", at_most=at_most)
    return {one.run_id: one.contents for one in pruned if one.contents}


async def pruned_at(scene: Scene, owner: Owner) -> datetime | None:
    return (await scene.store.runs.get("acme", owner.run_id)).contents_pruned_at


async def everything(scene: Scene, owner: Owner):
    """A run with its calls and approvals."""
    run = await scene.store.runs.get("acme", owner.run_id)
    calls = await scene.store.journal.of_run("acme", owner.run_id)
    asked = await scene.store.approvals.find("acme", run_id=owner.run_id, pending_only=False)
    return run, calls, asked


def resuming(scene: Scene, owner: Owner, run: Run):
    resumed = Resumed(run_id=owner.run_id, worked_seconds=0.0, by="dana")
    return scene.request(thread=run.thread_key, origin=resumed)


async def resumed(scene: Scene, owner: Owner) -> Owner:
    """The run that goes on for one that has ended."""
    run = await scene.store.runs.get("acme", owner.run_id)
    again = await scene.store.runs.admit(resuming(scene, owner, run))
    return next(claim.owner for claim in await scene.claim() if claim.run_id == again.run_id)


@pytest.mark.parametrize("status", ENDS)
async def test_words_go_and_facts_stay(scene: Scene, status: RunStatus):
    owner = await ended(scene, status)
    run, calls, asked = await everything(scene, owner)
    spent = await scene.budget(owner)
    assert await prune(scene) == {owner.run_id: 1 + 3 + 1}
    left, left_calls, left_asked = await everything(scene, owner)
    at = left.contents_pruned_at
    assert at is not None
    nothing = {"input": b"", "context": None, "output": None, "cause": left.cause, "contents_pruned_at": at}
    assert left == replace(run, **nothing)
    for call, was in zip(left_calls, calls, strict=True):
        assert (call.request, call.response, call.error_message, call.error_facts) == NOTHING_IN_CALLS
        words = {name: getattr(call, name) for name in ("request", "response", "error_message", "error_facts")}
        assert call == replace(was, contents_pruned_at=at, **words)
    [approval], [before] = left_asked, asked
    assert (approval.payload, approval.args, approval.decision) == NOTHING_IN_APPROVALS
    gone = {"payload": None, "args": None, "decision": None, "contents_pruned_at": at}
    assert approval == before.model_copy(update=gone)
    assert approval.decided_by == "dana"
    assert await scene.budget(owner) == spent


async def test_cause_keeps_where_of_which_type_and_of_which_class(scene: Scene):
    owner = await ended(scene, RunStatus.FAILED)
    await prune(scene)
    [cause] = [run.cause for run in await scene.store.runs.find("acme")]
    assert (cause.step_name, cause.error_type, cause.retryable) == ("refund", ErrorType.POLICY_DENIED, False)
    assert cause.metadata == {"class": "PolicyDenied"}
    assert cause.message == "what it said was pruned (contents_days)"
    assert cause.run_id == owner.run_id


async def test_pruning_is_an_event_and_the_log_is_verified(scene: Scene):
    owner = await ended(scene)
    await prune(scene)
    last = (await scene.store.events.read("acme", owner.run_id))[-1]
    assert (last.kind, last.payload) == (EventKind.RUN_PRUNED, {"contents": 5, "days": 0})
    assert (await verified(scene.store.events, "acme", owner.run_id)).ok
    assert await prune(scene) == {}


async def test_events_that_are_pruned_afterwards_leave_the_event_of_it(scene: Scene):
    owner = await ended(scene)
    await prune(scene)
    await prune(scene, retention=RetentionTerms(events_days=0, contents_days=0))
    assert await scene.kinds(owner) == ["run.completed", "run.pruned", "run.pruned"]


async def test_nothing_is_pruned_by_default_or_too_early(scene: Scene):
    owner = await ended(scene)
    for terms in (RetentionTerms(), RetentionTerms(contents_days=1), RetentionTerms(checkpoints_days=0)):
        assert await prune(scene, retention=terms) == {}
    assert await pruned_at(scene, owner) is None


async def test_round_ends_after_about_so_many_rows_and_the_next_goes_on(scene: Scene):
    owners = [await ended(scene) for _ in range(3)]
    first, second, third = (owner.run_id for owner in owners)
    assert await prune(scene, at_most=6) == {first: 5, second: 5}
    assert await prune(scene, at_most=6) == {third: 5}
    assert await prune(scene, at_most=6) == {}


async def test_run_that_has_not_ended_keeps_its_contents(scene: Scene):
    running, resting = await scene.running(), await scene.running()
    await works(scene, running)
    await scene.asked(resting)
    await scene.rest(resting)
    await scene.store.runs.admit(scene.request())
    assert await prune(scene) == {}


async def test_thread_with_an_open_run_keeps_the_contents_of_all_of_its_runs(scene: Scene):
    owner = await ended(scene, thread="t")
    going = await scene.running(thread="t")
    assert await prune(scene) == {}
    await ends(scene, going)
    assert await prune(scene) == {owner.run_id: 5, going.run_id: 1}


async def test_run_keeps_its_contents_until_those_of_the_run_that_goes_on_for_it_go(scene: Scene):
    first = await ended(scene, RunStatus.FAILED)
    second = await resumed(scene, first)
    assert await prune(scene) == {}
    await ends(scene, second)
    assert await prune(scene) == {second.run_id: 1}
    assert await prune(scene) == {first.run_id: 5}


async def test_call_that_was_sent_again_goes_with_the_run_that_sent_it_last(scene: Scene):
    first = await scene.running()
    await scene.store.journal.open(first, call := intent(first), event=INTENDED)
    await ends(scene, first, RunStatus.FAILED)
    second = await resumed(scene, first)
    await scene.store.journal.resend(second, call.call_id, reservation=ONE_TOOL_CALL, event=RETRIED)
    await scene.store.journal.close(second, outcome(call.call_id, response={"refund": "r"}), event=RETURNED)
    await ends(scene, second)
    assert await prune(scene) == {second.run_id: 2}
    [record] = await scene.store.journal.of_run("acme", first.run_id)
    assert record.contents_pruned_at == await pruned_at(scene, second)
    assert await prune(scene) == {first.run_id: 1}


async def test_run_with_a_call_without_an_outcome_keeps_its_contents(scene: Scene):
    owner = await scene.running()
    await scene.store.journal.open(owner, call := intent(owner), event=INTENDED)
    lost = outcome(call.call_id, OutcomeStatus.UNKNOWN, error_type=ErrorType.TIMEOUT, error_message="late")
    await scene.store.journal.close(owner, lost, event=LOST)
    await ends(scene, owner, RunStatus.FAILED)
    assert await prune(scene) == {}
    [record] = await scene.store.journal.of_run("acme", owner.run_id)
    assert (record.status, record.request["order_id"]) == ("unknown", "A-1")


async def test_question_that_was_withdrawn_with_its_run_loses_its_contents(scene: Scene):
    owner = await scene.running()
    asked = await scene.asked(owner)
    await ends(scene, owner, RunStatus.CANCELLED)
    assert await prune(scene) == {owner.run_id: 2}
    left = await scene.store.approvals.get("acme", asked.id)
    assert (left.status, left.payload) == ("withdrawn", None)


async def test_held_run_keeps_the_contents_of_its_thread_until_the_hold_is_lifted(scene: Scene):
    other, held = await ended(scene, thread="t"), await ended(scene, thread="t")
    apart = await ended(scene)
    await scene.store.retention.hold(DANA, "acme", held.run_id, reason="a claim")
    assert await prune(scene) == {apart.run_id: 5}
    await scene.store.retention.lift(DANA, "acme", held.run_id, reason="settled")
    assert await prune(scene) == {other.run_id: 5, held.run_id: 5}


async def test_tenant_under_legal_hold_loses_nothing(scene: Scene):
    await ended(scene)
    assert await prune(scene, legal_hold=True) == {}


async def test_terms_of_one_tenant_prune_no_run_of_another(scene: Scene):
    owner = await ended(scene)
    await scene.tenant("other", retention=AT_ONCE)
    assert list(await scene.store.retention.prune("other")) == []
    assert await pruned_at(scene, owner) is None


async def test_pruned_run_is_neither_gone_on_for_nor_forked(scene: Scene):
    owner = await ended(scene, RunStatus.FAILED)
    run = await scene.store.runs.get("acme", owner.run_id)
    await prune(scene)
    at = await pruned_at(scene, owner)
    fork = Forked(run_id=owner.run_id, checkpoint_id="c", salt="s", by="dana")
    for request in (resuming(scene, owner, run), scene.request(origin=fork)):
        with pytest.raises(ContentsPruned, match=r"pruned on .* by its tenant's term contents_days") as refused:
            await scene.store.runs.admit(request)
        told = {"run_id": owner.run_id, "term": "contents_days", "pruned_at": at.isoformat()}
        assert refused.value.facts == told
    assert len(await scene.store.runs.find("acme")) == 1


async def test_pruned_run_is_still_the_answer_to_its_own_request(scene: Scene):
    request = scene.request(run_id=(run_id := new_id()))
    await scene.tenant()
    await scene.store.runs.admit(request)
    [claim] = await scene.claim()
    await ends(scene, claim.owner)
    assert await prune(scene) == {run_id: 1}
    assert (await scene.store.runs.admit(request)).status is RunStatus.COMPLETED


@pytest.mark.parametrize("status", [OutcomeStatus.RETURNED, OutcomeStatus.FAILED])
async def test_pruned_call_neither_answers_nor_is_made_again(scene: Scene, status: OutcomeStatus):
    hosted = await attached(scene)
    call = intent(hosted)
    await scene.store.journal.open(hosted, call, event=INTENDED)
    trouble = {"error_type": ErrorType.TRANSIENT_DEPENDENCY} if status is OutcomeStatus.FAILED else {}
    told = FAILED if status is OutcomeStatus.FAILED else RETURNED
    await scene.store.journal.close(hosted, outcome(call.call_id, status, **trouble), event=told)
    await ends(scene, hosted)
    await prune(scene)
    later = await attached(scene)
    again = replace(call, call_id=new_id(), budgets=(later.run_id,))
    with pytest.raises(ContentsPruned, match=f"contents of run {hosted.run_id} .* its node 'refund' cannot"):
        await scene.store.journal.open(later, again, event=INTENDED)
    [record] = await scene.store.journal.of_run("acme", hosted.run_id)
    assert (record.status, record.sends) == (status, 1)


async def attached(scene: Scene) -> Owner:
    """A run of a thread whose host can go back to any of its tasks."""
    await scene.tenant()
    run = await scene.store.runs.admit(scene.request(thread="hosted", attached=True))
    return Owner(
        tenant_id="acme",
        run_id=run.run_id,
        thread_id=run.thread_id,
        epoch=run.epoch,
        attempt=run.attempt,
        worker_id="studio",
        attached=True,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_in_any_order_of_events_only_runs_that_nobody_needs_lose_their_contents(data: st.DataObject):
    scene = Scene(memory_store())
    await scene.tenant(retention=AT_ONCE)
    open_runs: list[Owner] = []
    for _ in range(data.draw(st.integers(1, 12))):
        await one_thing_happens(scene, data, open_runs)
    before = {run.run_id: run for run in await scene.store.runs.find("acme")}
    while await scene.store.retention.prune("acme"):
        pass
    runs = await scene.store.runs.find("acme")
    for run in runs:
        kept, calls = run.contents_pruned_at is None, await scene.store.journal.of_run("acme", run.run_id)
        thread = [each for each in runs if each.thread_id == run.thread_id]
        needed = (
            any(each.finished_at is None or each.legal_hold for each in thread)
            or any(each.resumed_from == run.run_id and each.contents_pruned_at is None for each in runs)
            or any(call.status == "unknown" for call in calls)
        )
        assert kept == (needed and before[run.run_id].contents_pruned_at is None)
        assert kept == (run.input != b"")
        assert all((call.contents_pruned_at is not None) == (call.request == {}) for call in calls)
        assert (await verified(scene.store.events, "acme", run.run_id)).ok


async def one_thing_happens(scene: Scene, data: st.DataObject, open_runs: list[Owner]) -> None:
    """A run starts, calls, ends, is held, is gone on for; or a round of pruning comes between."""
    finished = [run for run in await scene.store.runs.find("acme") if run.finished_at is not None]
    match data.draw(st.sampled_from(["start", "call", "end", "hold", "resume", "prune"])):
        case "start":
            await scene.store.runs.admit(scene.request(thread=data.draw(st.sampled_from(["t", "u"]))))
        case "call" if open_runs:
            owner = data.draw(st.sampled_from(open_runs))
            await scene.store.journal.open(owner, call := intent(owner, args={"n": new_id()}), event=INTENDED)
            if data.draw(st.booleans()):
                await scene.store.journal.close(owner, outcome(call.call_id, response={"a": 1}), event=RETURNED)
        case "end" if open_runs:
            status = data.draw(st.sampled_from(list(ENDS)))
            await ends(scene, open_runs.pop(data.draw(st.integers(0, len(open_runs) - 1))), status)
        case "hold" if finished and (run := data.draw(st.sampled_from(finished))).legal_hold is None:
            await scene.store.retention.hold(DANA, "acme", run.run_id, reason="a claim")
        case "resume" if finished:
            run = data.draw(st.sampled_from(finished))
            latest = (await scene.store.runs.find("acme", thread_key=run.thread_key))[0]
            resumable = run.status is not RunStatus.COMPLETED and run.run_id == latest.run_id
            if resumable and run.contents_pruned_at is None:
                resumed_from = Resumed(run_id=run.run_id, worked_seconds=0.0, by="dana")
                await scene.store.runs.admit(scene.request(thread=run.thread_key, origin=resumed_from))
        case "prune":
            await scene.store.retention.prune("acme")
    open_runs += [claim.owner for claim in await scene.claim()]
