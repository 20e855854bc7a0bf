"""What every store prunes, and what it never does."""

import pytest
from scenes import DANA, STRANGER, Scene, event

from holdfast.contracts.errors import Conflict, NotFound
from holdfast.contracts.events import EventKind
from holdfast.contracts.runs import Owner, RunStatus
from holdfast.contracts.tenancy import RetentionTerms
from holdfast.runtime.verification import verified

AT_ONCE = RetentionTerms(events_days=0)
ENDED = [EventKind.RUN_COMPLETED, EventKind.RUN_PRUNED]


async def ended(scene: Scene, *, events: int = 3) -> Owner:
    """A run that has ended, with so many events between its claim and its end."""
    owner = await scene.running()
    await scene.store.events.append(owner, [event(EventKind.NODE_STARTED)] * events)
    await scene.store.runs.finish(
        owner, RunStatus.COMPLETED, output=None, cause=None, event=event(EventKind.RUN_COMPLETED)
    )
    return owner


async def prune(scene: Scene, **terms) -> int:
    """How many events a tenant loses in one go under these terms."""
    await scene.tenant(retention=AT_ONCE, **terms)
    return sum(one.events for one in await scene.store.retention.prune("acme"))


async def test_nothing_is_pruned_by_default(scene: Scene):
    owner = await ended(scene)
    assert list(await scene.store.retention.prune("acme")) == []
    assert len(await scene.kinds(owner)) == 6


async def test_events_before_the_end_go_and_the_end_and_what_was_pruned_stay(scene: Scene):
    owner = await ended(scene)
    assert await prune(scene) == 5
    assert await scene.kinds(owner) == ENDED
    end, note = await scene.store.events.read("acme", owner.run_id)
    assert (end.seq, note.seq, note.payload) == (6, 7, {"days": 0, "events": 5})
    assert await prune(scene) == 0


async def test_pruned_chain_is_anchored_and_verified(scene: Scene):
    owner = await ended(scene)
    before = await scene.store.events.links("acme", owner.run_id)
    await prune(scene)
    head = await scene.store.events.head("acme", owner.run_id)
    assert (head.anchor_seq, head.anchor_hash, head.seq) == (5, before[4].hash, 7)
    found = await verified(scene.store.events, "acme", owner.run_id)
    assert (found.ok, found.events) == (True, 2)


async def test_batch_takes_so_many_and_the_next_goes_on(scene: Scene):
    first, second = await ended(scene, events=8), await ended(scene, events=2)
    await scene.tenant(retention=AT_ONCE)
    batches = []
    while pruned := await scene.store.retention.prune("acme", at_most=4):
        batches.append([(one.run_id, one.events) for one in pruned])
        for owner in (first, second):
            assert (await verified(scene.store.events, "acme", owner.run_id)).ok
    one, two = first.run_id, second.run_id
    assert batches == [[(one, 4)], [(one, 4)], [(one, 2), (two, 2)], [(two, 2)]]
    assert await scene.kinds(first) == [*ENDED, EventKind.RUN_PRUNED, EventKind.RUN_PRUNED]
    assert await scene.kinds(second) == [*ENDED, EventKind.RUN_PRUNED]
    left = await scene.store.events.read("acme", first.run_id)
    assert [note.payload["events"] for note in left[1:]] == [4, 8, 10]


async def test_run_that_has_not_ended_is_not_pruned(scene: Scene):
    running, interrupted = await scene.running(), await scene.running()
    await scene.asked(interrupted)
    await scene.rest(interrupted)
    queued = await scene.store.runs.admit(scene.request())
    assert await prune(scene) == 0
    for run_id in (running.run_id, interrupted.run_id, queued.run_id):
        assert (await scene.store.events.head("acme", run_id)).anchor_seq == 0


async def test_run_that_ended_too_recently_is_not_pruned(scene: Scene):
    await ended(scene)
    await scene.tenant(retention=RetentionTerms(events_days=1))
    assert list(await scene.store.retention.prune("acme")) == []


async def test_held_run_keeps_everything_until_the_hold_is_lifted(scene: Scene):
    held, other = await ended(scene), await ended(scene)
    run = await scene.store.retention.hold(DANA, "acme", held.run_id, reason="a claim")
    assert (run.legal_hold.by, run.legal_hold.reason) == ("dana", "a claim")
    assert await prune(scene) == 5
    assert await scene.kinds(other) == ENDED
    assert await scene.kinds(held) == [
        *("run.admitted", "run.claimed", *["node.started"] * 3, "run.completed"),
        "run.held",
    ]
    run = await scene.store.retention.lift(DANA, "acme", held.run_id, reason="settled")
    assert run.legal_hold is None
    assert await prune(scene) == 5
    assert await scene.kinds(held) == ["run.completed", "run.held", "run.hold_lifted", "run.pruned"]
    told = [
        (e.kind, e.payload.get("by"), e.payload.get("reason"))
        for e in await scene.store.events.read("acme", held.run_id)
    ]
    assert told[1:3] == [("run.held", "dana", "a claim"), ("run.hold_lifted", "dana", "settled")]
    assert (await verified(scene.store.events, "acme", held.run_id)).ok


async def test_tenant_under_legal_hold_loses_nothing(scene: Scene):
    owner = await ended(scene)
    assert await prune(scene, legal_hold=True) == 0
    assert len(await scene.kinds(owner)) == 6


async def test_run_at_work_can_be_held_and_goes_on(scene: Scene):
    owner = await scene.running()
    await scene.store.retention.hold(DANA, "acme", owner.run_id, reason="a claim")
    await scene.store.events.append(owner, [event(EventKind.NODE_STARTED)])
    assert (await verified(scene.store.events, "acme", owner.run_id)).events == 4


async def test_hold_is_put_once_and_lifted_once(scene: Scene):
    owner = await ended(scene)
    with pytest.raises(Conflict, match="not held"):
        await scene.store.retention.lift(DANA, "acme", owner.run_id, reason="")
    await scene.store.retention.hold(DANA, "acme", owner.run_id, reason="a claim")
    with pytest.raises(Conflict, match="held already, by 'dana': a claim"):
        await scene.store.retention.hold(DANA, "acme", owner.run_id, reason="another")


async def test_stranger_neither_holds_nor_lifts(scene: Scene):
    owner = await ended(scene)
    await scene.tenant("other")
    for act in (scene.store.retention.hold, scene.store.retention.lift):
        with pytest.raises(NotFound):
            await act(STRANGER, "acme", owner.run_id, reason="")
        with pytest.raises(NotFound):
            await act(DANA, "other", owner.run_id, reason="")


async def test_terms_of_one_tenant_prune_no_run_of_another(scene: Scene):
    await ended(scene)
    await scene.tenant("other", retention=AT_ONCE)
    assert list(await scene.store.retention.prune("other")) == []
