"""The event log in Postgres, under real concurrency."""

import asyncio
from decimal import Decimal

import pytest
from fix_house import House, event

from holdfast.checkpoints.events import write_events
from holdfast.contracts.errors import ConfigurationError, InvalidRequest, InvariantViolated
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import RunId, TenantId

ACME = TenantId("acme")


async def test_event_is_read_back_whole_and_in_canonical_form(house: House) -> None:
    await house.runs.admit(house.request())
    owner = (await house.claim_one()).owner
    draft = EventDraft(
        kind=EventKind.TOOL_RETURNED,
        node="act",
        task_id="task",
        call_id=house.ids.new(),
        trace_id="a" * 32,
        span_id="b" * 16,
        payload={"z": Decimal("0.10"), "a": 1},
    )
    await house.events.append(owner, [draft])
    (read,) = await house.events.read(ACME, owner.run_id, after=2)
    assert (read.seq, read.attempt, read.tenant_id, read.run_id) == (3, 1, ACME, owner.run_id)
    for name in ("kind", "node", "task_id", "call_id", "trace_id", "span_id"):
        assert getattr(read, name) == getattr(draft, name)
    assert read.payload == {"z": "0.10", "a": 1}
    stored = await house.scalar("select payload from events where run_id = %s and seq = 3", owner.run_id)
    assert stored == b'{"a":1,"z":"0.10"}'


async def test_events_written_at_once_are_numbered_without_gaps(house: House) -> None:
    await house.runs.admit(house.request())
    owner = (await house.claim_one()).owner
    batches = [[event(EventKind.NODE_STARTED, batch=n, place=place) for place in range(3)] for n in range(12)]
    await asyncio.gather(*(house.events.append(owner, batch) for batch in batches))
    log = await house.events.read(ACME, owner.run_id, after=2)
    assert [one.seq for one in log] == list(range(3, 39))
    assert [one.payload["place"] for one in log] == [0, 1, 2] * 12
    assert [one.at for one in log] == sorted(one.at for one in log)


async def test_log_is_read_in_pages(house: House) -> None:
    await house.runs.admit(house.request())
    owner = (await house.claim_one()).owner
    await house.events.append(owner, [event(EventKind.NODE_STARTED) for _ in range(5)])
    assert [one.seq for one in await house.events.read(ACME, owner.run_id, after=2, limit=2)] == [3, 4]
    assert await house.events.read(ACME, owner.run_id, after=7) == []


async def test_log_of_another_tenant_is_empty(house: House) -> None:
    run = await house.runs.admit(house.request())
    assert await house.events.read(TenantId("bolt"), run.run_id) == []
    with pytest.raises(InvalidRequest, match="not the id of a run"):
        await house.events.read(ACME, RunId("first"))


async def test_change_whose_event_cannot_be_written_does_not_commit(house: House) -> None:
    run = await house.runs.admit(house.request())
    claim = await house.claim_one()
    unwritable = event(EventKind.RUN_COMPLETED, text="\x00")
    with pytest.raises(InvalidRequest, match="NUL"):
        await house.events.append(claim.owner, [event(EventKind.NODE_STARTED), unwritable])
    await house.shift("revoke insert on events from holdfast_app")
    with pytest.raises(ConfigurationError, match="permission denied"):
        await house.end(claim)
    assert (await house.runs.get(ACME, run.run_id)).status == "running"
    assert await house.scalar("select count(*) from leases") == 1


async def test_log_is_append_only_for_the_application(house: House) -> None:
    await house.runs.admit(house.request())
    for statement in ("update events set attempt = 9", "delete from events"):
        with pytest.raises(ConfigurationError, match="permission denied"):
            async with house.database.tenant("acme") as conn:
                await conn.execute(statement)


async def test_run_without_a_counter_is_an_invariant_violated(house: House) -> None:
    with pytest.raises(InvariantViolated, match="no head"):
        async with house.database.tenant("acme") as conn:
            await write_events(
                conn,
                tenant_id=ACME,
                run_id=RunId(house.ids.new()),
                attempt=0,
                drafts=[event(EventKind.NODE_STARTED)],
            )


async def test_writing_no_event_takes_no_lock(house: House) -> None:
    run = await house.runs.admit(house.request())
    async with house.database.tenant("acme") as conn:
        await conn.execute("select 1 from run_heads where run_id = %s for update", (run.run_id,))
        async with asyncio.timeout(5), house.database.tenant("acme") as other:
            await write_events(other, tenant_id=ACME, run_id=run.run_id, attempt=0, drafts=[])
