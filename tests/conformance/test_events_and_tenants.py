"""What every event log does, and every list of tenants."""

import pytest
from scenes import DANA, STRANGER, Scene, event, new_id

from holdfast.contracts.canonical import canonical
from holdfast.contracts.chain import GENESIS, chained
from holdfast.contracts.errors import InvalidRequest, LeaseLost, NotFound
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits
from holdfast.contracts.tenancy import Tenant


async def test_events_are_numbered_without_gaps_and_read_in_order(scene: Scene):
    owner = await scene.running()
    facts = {"node": "draft", "task_id": "t", "call_id": new_id(), "trace_id": "a" * 32, "span_id": "b" * 16}
    drafts = [event(EventKind.NODE_STARTED, **facts, payload={"n": n, "deep": [{"x": None}]}) for n in range(3)]
    await scene.store.events.append(owner, drafts[:1])
    await scene.store.events.append(owner, drafts[1:])
    events = await scene.store.events.read("acme", owner.run_id)
    assert [e.seq for e in events] == [1, 2, 3, 4, 5]
    assert [e.payload for e in events[2:]] == [draft.payload for draft in drafts]
    for name, value in facts.items():
        assert getattr(events[-1], name) == value
    assert (events[-1].run_id, events[-1].tenant_id, events[-1].attempt) == (owner.run_id, "acme", 1)
    assert [e.at for e in events] == sorted(e.at for e in events)


async def test_a_log_is_read_in_pages(scene: Scene):
    owner = await scene.running()
    await scene.store.events.append(owner, [event(EventKind.NODE_STARTED)] * 4)
    pages = [await scene.store.events.read("acme", owner.run_id, after=after, limit=2) for after in (0, 2, 4, 6)]
    assert [[e.seq for e in page] for page in pages] == [[1, 2], [3, 4], [5, 6], []]


async def test_no_events_are_no_change(scene: Scene):
    owner = await scene.running()
    await scene.store.events.append(owner, [])
    assert await scene.kinds(owner) == ["run.admitted", "run.claimed"]


async def test_events_that_cannot_be_written_are_not_written_in_part(scene: Scene):
    owner = await scene.running()
    bad = event(EventKind.NODE_FAILED, payload={"message": "NUL \x00 is no text"})
    with pytest.raises(InvalidRequest):
        await scene.store.events.append(owner, [event(EventKind.NODE_STARTED), bad])
    assert await scene.kinds(owner) == ["run.admitted", "run.claimed"]


async def test_a_stale_worker_appends_nothing(scene: Scene):
    owner = await scene.running(ttl=0)
    await scene.claim("worker-2")
    before = await scene.kinds(owner)
    with pytest.raises(LeaseLost):
        await scene.store.events.append(owner, [event(EventKind.NODE_COMPLETED)])
    assert await scene.kinds(owner) == before


async def test_another_tenant_reads_no_events(scene: Scene):
    owner = await scene.running()
    await scene.tenant("other")
    assert list(await scene.store.events.read("other", owner.run_id)) == []


async def test_a_tenants_terms_are_kept_and_changed(scene: Scene):
    terms = Tenant(tenant_id="acme", defaults=Limits(max_steps=3), budget=Limits(max_tool_calls=1), max_queued=2)
    await scene.store.tenants.put(terms)
    assert await scene.store.tenants.get("acme") == terms
    changed = terms.model_copy(update={"max_queued": 5, "may_be_unlimited": True})
    await scene.store.tenants.put(changed)
    assert await scene.store.tenants.get("acme") == changed


async def test_an_unknown_tenant_is_not_found(scene: Scene):
    with pytest.raises(NotFound):
        await scene.store.tenants.get("nobody")


async def test_a_principal_sees_its_own_tenants(scene: Scene):
    for name in ("other", "acme"):
        await scene.tenant(name)
    assert list(await scene.store.tenants.names(principal=DANA)) == ["acme", "other"]
    assert list(await scene.store.tenants.names(principal=STRANGER)) == ["other"]


async def test_an_event_from_no_span_belongs_to_the_span_in_which_the_run_was_asked_for(scene: Scene):
    await scene.tenant("acme")
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    run = await scene.store.runs.admit(scene.request("acme", trace_parent=parent))
    await scene.claim()

    events = await scene.store.events.read("acme", run.run_id)

    assert {(event.trace_id, event.span_id) for event in events} == {
        ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    }


async def test_every_event_is_chained_to_the_one_before_it(scene: Scene):
    owner = await scene.running(trace_parent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    whole = {"node": "entwürfe", "task_id": "", "call_id": new_id(), "trace_id": "a" * 32, "span_id": "b" * 16}
    drafts = [event(EventKind.NODE_STARTED, **whole, payload={"n": "½ \\ \n"}), event(EventKind.NODE_FAILED)]
    await scene.store.events.append(owner, drafts)
    await scene.store.events.append(owner, drafts[:1])

    links = await scene.store.events.links("acme", owner.run_id)

    assert [link.seq for link in links] == [1, 2, 3, 4, 5]
    previous = GENESIS
    for link, read in zip(links, await scene.store.events.read("acme", owner.run_id), strict=True):
        assert (link.kind, link.task_id, link.call_id, link.at) == (read.kind, read.task_id, read.call_id, read.at)
        assert link.payload == canonical(read.payload)
        assert link.hash == chained(previous, owner.run_id, link), f"event {link.seq}"
        previous = link.hash
    assert [link.seq for link in await scene.store.events.links("acme", owner.run_id, after=3, limit=1)] == [4]


async def test_another_tenant_reads_no_chain(scene: Scene):
    owner = await scene.running()
    await scene.tenant("other")
    assert list(await scene.store.events.links("other", owner.run_id)) == []
