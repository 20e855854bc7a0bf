"""The chain of a run's events in Postgres: whoever writes, in whatever company, and from the first version on."""

import asyncio
from collections.abc import Sequence

import psycopg
import pytest
from fix_database import DatabaseUrls
from fix_house import DANA, SERVED, House, event

from holdfast.checkpoints.events import Entry, write_entries
from holdfast.checkpoints.schema import Phase, migrations
from holdfast.contracts.chain import GENESIS, chained
from holdfast.contracts.errors import InvariantViolated
from holdfast.contracts.events import EventKind
from holdfast.contracts.ids import RunId, TenantId

ACME = TenantId("acme")
WRITE_OF_THE_VERSION_BEFORE = """
with head as (
    update run_heads
       set seq = seq + cardinality(%(kind)s::text[])
     where run_id = %(run_id)s and tenant_id = 'acme'
 returning run_id, tenant_id, seq - cardinality(%(kind)s::text[]) as last)
insert into events (run_id, seq, tenant_id, attempt, kind, payload)
select head.run_id, head.last + draft.n, head.tenant_id, 1, draft.kind, '{}'
  from head cross join unnest(%(kind)s::text[]) with ordinality as draft(kind, n)
 order by draft.n
"""
BEFORE_THE_CHAIN = """
alter table events drop column hash;
alter table run_heads drop column hash, drop column anchor_seq, drop column anchor_hash;
drop aggregate event_chain_v1(bytea, bytea);
drop function event_link_v1, event_content_v1
"""


@pytest.fixture
def older_code(database_urls: DatabaseUrls) -> None:
    """The database serves the version before as well: nothing has been taken away yet."""
    [chain] = [each for each in migrations() if each.name == "event_chain" and each.phase is Phase.PRE]
    with psycopg.connect(database_urls.owner, autocommit=True) as conn:
        conn.execute(chain.sql[chain.sql.index("create function chain_event") :])


async def hashes(house: House, run_id: RunId) -> Sequence[bytes]:
    """Of a run's events, which are chained up to its head."""
    previous, found = GENESIS, []
    for link in await house.events.links(ACME, run_id):
        assert link.hash == chained(previous, run_id, link), f"event {link.seq}"
        found.append(previous := link.hash)
    head = await house.row("select seq, hash from run_heads where run_id = %s", run_id)
    assert (head["seq"], head["hash"]) == (len(found), previous)
    return found


async def test_every_writer_of_a_runs_life_chains(house: House) -> None:
    run = await house.runs.admit(house.request())
    claim = await house.claim_one()
    approval = await house.ask(claim)
    await house.runs.rest(claim.owner, next_action="", event=event(EventKind.RUN_INTERRUPTED))
    await house.decide(approval)
    await house.end(await house.claim_one("second"))
    assert len(await hashes(house, run.run_id)) == len(await house.kinds(run.run_id)) == 8


async def test_events_of_many_runs_written_together_are_chained_each_to_its_own(house: House) -> None:
    runs = [(await house.runs.admit(house.request())).run_id for _ in range(5)]
    started = event(EventKind.NODE_STARTED)
    entries = [Entry(tenant_id=ACME, run_id=run_id, attempt=1, draft=started) for run_id in [*runs, *runs[::-1]] * 3]

    async def write(order: int) -> None:
        async with house.database.tenant(ACME) as conn:
            await write_entries(conn, entries[::order])

    await asyncio.gather(*(write(order) for order in (1, -1) * 6))  # of two that wait for each other, one would fail
    for run_id in runs:
        assert len(await hashes(house, run_id)) == 1 + 12 * 6


async def test_claims_of_several_tenants_are_written_together(house: House) -> None:
    run = await house.runs.admit(house.request())
    await house.runs.admit(house.request(tenant="bolt"))
    claims = await house.leases.claim("first", tenants=None, graphs=SERVED, slots=5, ttl_seconds=30)
    assert {claim.run.tenant.tenant_id for claim in claims} == {"acme", "bolt"}
    assert len(await hashes(house, run.run_id)) == 2


@pytest.mark.usefixtures("older_code")
async def test_events_of_the_version_before_are_chained_beside_ours(house: House) -> None:
    run = await house.runs.admit(house.request())
    claim = await house.claim_one()
    wanted = {"run_id": run.run_id, "kind": ["node.started", "node.completed"]}

    async def write_as_before() -> None:
        async with house.database.tenant(ACME) as conn:
            await conn.execute(WRITE_OF_THE_VERSION_BEFORE, wanted)

    ours = [house.events.append(claim.owner, [event(EventKind.NODE_STARTED)]) for _ in range(8)]
    await asyncio.gather(*ours, *(write_as_before() for _ in range(8)))
    assert len(await hashes(house, run.run_id)) == 2 + 8 + 16


@pytest.mark.usefixtures("older_code")
async def test_version_before_claims_with_its_rights(house: House) -> None:
    run = await house.runs.admit(house.request())
    async with house.database.engine() as conn:
        await conn.execute(WRITE_OF_THE_VERSION_BEFORE, {"run_id": run.run_id, "kind": ["run.claimed"]})
    assert len(await hashes(house, run.run_id)) == 2


async def test_log_from_before_the_chain_is_chained_by_the_migration(house: House, database_urls: DatabaseUrls) -> None:
    runs = [(await house.runs.admit(house.request())).run_id for _ in range(3)]
    await house.runs.request_cancel(DANA, ACME, runs[0], reason="no longer wanted")
    before = [await hashes(house, run_id) for run_id in runs]
    with psycopg.connect(database_urls.admin, autocommit=True) as conn:
        conn.execute(BEFORE_THE_CHAIN)

    with psycopg.connect(database_urls.owner, autocommit=True) as conn:
        for migration in migrations():
            if migration.name == "event_chain":
                conn.execute(migration.sql)

    assert [await hashes(house, run_id) for run_id in runs] == before


async def test_tenants_entry_for_a_run_of_another_is_refused(house: House) -> None:
    run = await house.runs.admit(house.request(tenant="bolt"))
    stray = Entry(tenant_id=ACME, run_id=run.run_id, attempt=1, draft=event(EventKind.NODE_STARTED))
    with pytest.raises(InvariantViolated, match="no head"):
        async with house.database.tenants([ACME, TenantId("bolt")]) as conn:
            await write_entries(conn, [stray])
