"""What every store tells of workers, and of the versions that open runs need."""

from dataclasses import replace

import pytest
from scenes import DANA, STRANGER, Scene, event

from holdfast.contracts.errors import Conflict, NotFound
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import GraphVersion, RunStatus, owner_of
from holdfast.contracts.workers import ServedGraph

DESK = ServedGraph(name="desk", version="2.1", compatible=(">=2,<3", "blue"))
SHOP = ServedGraph(name="shop", version="1")


async def queued(scene: Scene, version: str, **changes):
    await scene.tenant(changes.get("tenant", "acme"))
    return await scene.store.runs.admit(scene.request(graph_version=version, **changes))


async def test_a_worker_is_there_with_what_it_serves_until_it_leaves(scene: Scene):
    workers = scene.store.workers
    await workers.announce("one", [DESK, SHOP], ttl_seconds=60)
    await workers.announce("two", [], ttl_seconds=60)
    assert [(each.worker_id, each.serves) for each in await workers.alive()] == [("one", (DESK, SHOP)), ("two", ())]
    await workers.leave("one")
    await workers.leave("nobody")
    assert [each.worker_id for each in await workers.alive()] == ["two"]


async def test_a_worker_that_says_it_again_is_known_since_it_first_did(scene: Scene):
    workers = scene.store.workers
    await workers.announce("one", [SHOP], ttl_seconds=60)
    [first] = await workers.alive()
    await workers.announce("one", [DESK], ttl_seconds=60)
    [again] = await workers.alive()
    assert (again.serves, again.since) == ((DESK,), first.since)


async def test_a_worker_that_has_not_said_so_in_time_is_gone_and_forgotten(scene: Scene):
    workers = scene.store.workers
    await workers.announce("lost", [DESK], ttl_seconds=-1)
    assert list(await workers.alive()) == []
    await workers.announce("other", [DESK], ttl_seconds=60)
    await workers.announce("lost", [DESK], ttl_seconds=60)
    since = {each.worker_id: each.since for each in await workers.alive()}
    assert since["lost"] > since["other"], "it is a new one"


async def test_the_versions_that_open_runs_need_are_counted_over_all_tenants(scene: Scene):
    waiting = [await queued(scene, "1"), await queued(scene, "1", tenant="bolt"), await queued(scene, "2")]
    await queued(scene, "3", attached=True)
    wanted = await scene.store.workers.wanted()
    assert [(each.name, each.version, each.queued, each.running) for each in wanted] == [
        ("desk", "1", 2, 0),
        ("desk", "2", 1, 0),
    ]
    assert wanted[0].oldest_at == waiting[0].created_at


async def test_a_run_that_rests_is_needed_code_for_and_one_that_has_ended_is_not(scene: Scene):
    resting, ended = await scene.running(), await scene.running()
    await scene.asked(resting)
    await scene.rest(resting)
    await scene.store.runs.finish(
        ended, RunStatus.COMPLETED, output=None, cause=None, event=event(EventKind.RUN_COMPLETED)
    )
    [wanted] = await scene.store.workers.wanted()
    assert (wanted.queued, wanted.running, wanted.interrupted) == (0, 0, 1)
    assert list(await scene.store.workers.claimable(["desk"])) == []


async def test_claimable_are_the_versions_of_the_graphs_that_are_asked_for(scene: Scene):
    for version in ("2", "10", "1", "2", "blue"):
        await queued(scene, version)
    await queued(scene, "7", graph_name="shop")
    await queued(scene, "8", attached=True)
    claimable = scene.store.workers.claimable
    assert set(await claimable(["desk"])) == {GraphVersion("desk", version) for version in ("1", "10", "2", "blue")}
    assert set(await claimable(["shop", "desk", "none"])) == {*await claimable(["desk"]), GraphVersion("shop", "7")}
    assert list(await claimable([])) == []


async def test_a_claim_and_its_event_tell_which_version_serves_the_attempt(scene: Scene):
    run = await queued(scene, "2.0")
    [claim] = await scene.store.leases.claim(
        "w", tenants=None, graphs={GraphVersion("desk", "2.0"): "2.1"}, slots=1, ttl_seconds=9
    )
    assert (claim.run.graph_version, claim.served_by) == ("2.0", "2.1")
    claimed = await scene.store.events.latest("acme", run.run_id, EventKind.RUN_CLAIMED)
    assert claimed is not None
    assert claimed.payload["graph_version"] == "2.1"


async def test_the_latest_event_of_a_kind_is_found_and_of_another_tenant_none(scene: Scene):
    owner = await scene.running()
    started = [event(EventKind.NODE_STARTED, node=name) for name in ("one", "two")]
    await scene.store.events.append(owner, [*started, event(EventKind.NODE_COMPLETED, node="two")])
    latest = scene.store.events.latest
    found = await latest("acme", owner.run_id, EventKind.NODE_STARTED)
    assert found is not None
    assert found.node == "two"
    assert await latest("acme", owner.run_id, EventKind.RUN_FAILED) is None
    assert await latest("other", owner.run_id, EventKind.NODE_STARTED) is None


async def test_an_attached_run_that_rests_goes_on_in_its_host_and_says_by_which_version(scene: Scene):
    await scene.tenant()
    run = await scene.store.runs.admit(scene.request(attached=True, limits=Limits(deadline_seconds=100)))
    reattach = scene.store.runs.reattach
    with pytest.raises(Conflict, match="running"):
        await reattach(DANA, "acme", run.run_id, served_by="2")
    await scene.rest(owner_of(run, "host"))
    with pytest.raises(NotFound):
        await reattach(STRANGER, "acme", run.run_id, served_by="2")
    again = await reattach(DANA, "acme", run.run_id, served_by="2")
    assert (again.status, again.epoch, again.attempt, again.next_action) == (RunStatus.RUNNING, 2, 2, None)
    assert again.remaining_seconds is not None
    claimed = await scene.store.events.latest("acme", run.run_id, EventKind.RUN_CLAIMED)
    assert claimed is not None
    assert claimed.payload == {"epoch": 2, "attempt": 2, "graph_version": "2"}


async def test_the_same_request_made_by_newer_code_is_the_run_that_was_admitted(scene: Scene):
    await scene.tenant()
    request = scene.request(graph_version="1")
    run = await scene.store.runs.admit(request)
    again = await scene.store.runs.admit(replace(request, graph_version="2"))
    assert (again.run_id, again.graph_version) == (run.run_id, "1")
