"""What every store does with leases."""

import asyncio

import pytest
from scenes import Scene, event

from holdfast.contracts.errors import LeaseLost
from holdfast.contracts.events import EventKind
from holdfast.contracts.runs import GraphVersion, RunStatus


async def queue(scene: Scene, tenant: str = "acme", **changes):
    await scene.tenant(tenant)
    return await scene.store.runs.admit(scene.request(tenant, **changes))


async def test_a_claim_moves_the_epoch_and_the_attempt_and_writes_its_event(scene: Scene):
    run = await queue(scene)
    [claim] = await scene.claim("worker-7")
    assert (claim.run_id, claim.worker_id) == (run.run_id, "worker-7")
    assert (claim.run.status, claim.run.epoch, claim.run.attempt) == (RunStatus.RUNNING, 1, 1)
    assert claim.run.input == run.input
    assert claim.run.worker_id == "worker-7"
    assert claim.heartbeat_at < claim.claimed_until
    [_, claimed] = await scene.store.events.read("acme", run.run_id)
    assert (claimed.kind, claimed.attempt) == (EventKind.RUN_CLAIMED, 1)
    assert claimed.payload == {"worker_id": "worker-7", "epoch": 1, "attempt": 1, "graph_version": "1"}


async def test_the_oldest_are_claimed_first_and_no_more_than_there_are_slots_for(scene: Scene):
    runs = [await queue(scene) for _ in range(3)]
    assert [claim.run_id for claim in await scene.claim(slots=2)] == [run.run_id for run in runs[:2]]
    assert [claim.run_id for claim in await scene.claim(slots=2)] == [runs[2].run_id]
    assert list(await scene.claim()) == []


async def test_only_the_graphs_and_tenants_that_are_asked_for_are_claimed(scene: Scene):
    await queue(scene)
    other = await queue(scene, "other")
    other_graph = {GraphVersion("x", "1"): "1"}
    assert not await scene.store.leases.claim("w", tenants=None, graphs=other_graph, slots=9, ttl_seconds=9)
    assert list(await scene.claim(tenants=[])) == []
    assert [claim.run_id for claim in await scene.claim(tenants=["other"])] == [other.run_id]
    assert len(await scene.claim()) == 1


async def test_runs_of_one_thread_are_claimed_one_after_the_other(scene: Scene):
    first, second = await queue(scene, thread="a"), await queue(scene, thread="a")
    [claim] = await scene.claim()
    assert claim.run_id == first.run_id
    assert list(await scene.claim()) == []
    await scene.asked(claim.owner)
    await scene.rest(claim.owner)
    assert list(await scene.claim()) == []
    approvals = await scene.store.approvals.find("acme")
    await scene.decide(approvals[0])
    [claim] = await scene.claim()
    assert claim.run_id == first.run_id
    await scene.store.runs.finish(
        claim.owner, RunStatus.COMPLETED, output=None, cause=None, event=event(EventKind.RUN_COMPLETED)
    )
    assert [claim.run_id for claim in await scene.claim()] == [second.run_id]


async def test_a_lease_that_has_run_out_is_taken_over(scene: Scene):
    await queue(scene)
    [stale] = await scene.claim("worker-1", ttl=0)
    [fresh] = await scene.claim("worker-2")
    assert (fresh.run_id, fresh.run.epoch, fresh.run.attempt) == (stale.run_id, 2, 2)
    assert fresh.run.started_at == stale.run.started_at
    with pytest.raises(LeaseLost):
        await scene.store.events.append(stale.owner, [event(EventKind.NODE_STARTED)])


async def test_a_lease_that_is_alive_is_left_alone(scene: Scene):
    await queue(scene)
    await scene.claim("worker-1", ttl=60)
    assert list(await scene.claim("worker-2")) == []


async def test_what_a_worker_has_claimed_without_hearing_of_it_is_taken_over_at_once(scene: Scene):
    held, unheard, _ = await queue(scene), await queue(scene), await queue(scene)
    await scene.claim("worker-1", slots=2)
    [other] = await scene.claim("worker-2")
    await scene.store.leases.disown("worker-1", held=[held.run_id])
    [taken] = await scene.claim("worker-3")
    assert (taken.run_id, taken.run.epoch, taken.run.takeovers) == (unheard.run_id, 2, 1)
    assert (await scene.renew("worker-2", [other.owner], ttl_seconds=60))[other.run_id].held


async def test_the_next_expiry_is_that_of_the_first_lease_to_run_out_of_those_that_are_good(scene: Scene):
    assert await scene.store.leases.seconds_to_next_expiry() is None
    for ttl in (40, 20, 0):
        await queue(scene)
        await scene.claim(f"worker-{ttl}", slots=1, ttl=ttl)
    assert 0 < await scene.store.leases.seconds_to_next_expiry() <= 20


async def test_a_heartbeat_prolongs_what_is_held(scene: Scene):
    owner = await scene.running(ttl=60)
    renewed = await scene.renew("worker-1", [owner], ttl_seconds=120)
    assert renewed[owner.run_id].held
    assert not renewed[owner.run_id].cancel_requested


async def test_a_heartbeat_does_not_raise_the_dead(scene: Scene):
    owner = await scene.running(ttl=0)
    assert not (await scene.renew("worker-1", [owner], ttl_seconds=60))[owner.run_id].held
    assert [claim.run_id for claim in await scene.claim("worker-2")] == [owner.run_id]


async def test_a_heartbeat_of_another_worker_or_epoch_holds_nothing(scene: Scene):
    owner = await scene.running(ttl=0)
    [claim] = await scene.claim("worker-2")
    assert not (await scene.renew("worker-1", [owner], ttl_seconds=60))[owner.run_id].held
    assert not (await scene.renew("worker-1", [claim.owner], ttl_seconds=60))[owner.run_id].held
    assert (await scene.renew("worker-2", [claim.owner], ttl_seconds=60))[owner.run_id].held


async def test_a_run_past_its_attempts_is_claimed_so_that_a_worker_can_end_it(scene: Scene):
    await queue(scene, max_attempts=1)
    await scene.claim(ttl=0)
    [claim] = await scene.claim("worker-2")
    assert (claim.run.attempt, claim.run.max_attempts) == (2, 1)


async def test_lost_workers_in_a_row_are_counted_and_a_pause_is_none(scene: Scene):
    await queue(scene)
    lost = [(await scene.claim(f"worker-{n}", ttl=0))[0] for n in range(3)]
    assert [claim.run.takeovers for claim in lost] == [0, 1, 2]
    await scene.store.runs.release(lost[-1].owner, event=event(EventKind.RUN_RELEASED))
    [claim] = await scene.claim("worker-4")
    assert (claim.run.takeovers, claim.run.attempt) == (0, 4)


async def test_workers_at_the_same_time_never_claim_one_run_twice(scene: Scene):
    runs = [await queue(scene) for _ in range(6)]
    claims = await asyncio.gather(*(scene.claim(f"worker-{n}", slots=3) for n in range(4)))
    taken = [claim.run_id for one in claims for claim in one]
    taken += [claim.run_id for claim in await scene.claim()]
    assert sorted(taken) == sorted(run.run_id for run in runs)


async def test_a_run_of_another_version_waits_for_a_worker_that_has_it(scene):
    run = await queue(scene, graph_version="2")

    assert list(await scene.claim()) == []

    [claim] = await scene.store.leases.claim(
        "newer", tenants=None, graphs={GraphVersion(scene.graph, "2"): "2"}, slots=1, ttl_seconds=9
    )
    assert claim.run_id == run.run_id
