"""What the journal on Postgres does that only a database with others in it can show."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal

import psycopg
import pytest
from fix_database import DatabaseUrls
from psycopg.rows import dict_row
from scenes import INTENDED, RETURNED, Scene, intent, outcome
from stores import postgres_store

from holdfast.checkpoints.database import Database
from holdfast.contracts.calls import Fresh, Unknown
from holdfast.contracts.errors import HoldfastError, InvalidRequest, PolicyDenied
from holdfast.contracts.limits import Limits, Usage
from holdfast.testing.invariants import assert_invariants

PATIENCE_SECONDS = 10


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(postgres_store(database))


@asynccontextmanager
async def admin(urls: DatabaseUrls):
    conn = await psycopg.AsyncConnection.connect(urls.admin, autocommit=True, row_factory=dict_row)
    async with conn:
        yield conn


async def somebody_waits(conn) -> None:
    """Return once a connection of this database waits for a lock."""
    waiting = "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await (await conn.execute(waiting)).fetchone():  # noqa: ASYNC110  # Postgres tells nobody
            await asyncio.sleep(0.01)


@asynccontextmanager
async def budget_locked(urls: DatabaseUrls, budget_id: str):
    """Keep whoever reserves on a budget waiting."""
    async with admin(urls) as conn, conn.transaction():
        await conn.execute("select from budgets where budget_id = %s for update", [budget_id])
        yield


async def test_a_run_is_not_taken_over_while_its_intent_is_being_written(scene: Scene, database_urls: DatabaseUrls):
    owner = await scene.running(ttl=0)
    wanted = intent(owner)
    async with admin(database_urls) as watcher, asyncio.TaskGroup() as group:
        async with budget_locked(database_urls, owner.run_id):
            opening = group.create_task(scene.store.journal.open(owner, wanted, event=INTENDED))
            await somebody_waits(watcher)
            assert list(await scene.claim("worker-2")) == []
        assert isinstance(await opening, Fresh)
    [claim] = await scene.claim("worker-2")
    assert isinstance(await scene.store.journal.open(claim.owner, wanted, event=INTENDED), Unknown)


async def test_an_intent_that_is_cancelled_under_way_leaves_no_trace(
    scene: Scene, database: Database, database_urls: DatabaseUrls
):
    owner = await scene.running()
    wanted = intent(owner)
    async with admin(database_urls) as watcher, budget_locked(database_urls, owner.run_id):
        opening = asyncio.create_task(scene.store.journal.open(owner, wanted, event=INTENDED))
        await somebody_waits(watcher)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    assert await scene.store.journal.find(owner.tenant_id, owner.thread_id, wanted.identity.key) is None
    assert (await scene.budget(owner)).reserved == Usage()
    await assert_invariants(database)


async def test_paths_that_cross_do_not_wait_for_each_other_for_ever(scene: Scene, database: Database):
    one, two = await scene.running(), await scene.running()
    shared = await scene.store.ledger.tenant_budget("acme")
    paths = [(one, (one.run_id, shared)), (two, (shared, two.run_id))]
    calls = [(owner, intent(owner, occurrence=n, budgets=path)) for n in range(6) for owner, path in paths]

    async def call(owner, wanted) -> None:
        await scene.store.journal.open(owner, wanted, event=INTENDED)
        await scene.store.journal.close(owner, outcome(wanted.call_id), event=RETURNED)

    async with asyncio.TaskGroup() as group:
        for owner, wanted in calls:
            group.create_task(call(owner, wanted))
    assert (await scene.budget(one, shared)).spent.tool_calls == len(calls)
    await assert_invariants(database)


async def test_money_is_kept_in_whole_micro_dollars(scene: Scene, database_urls: DatabaseUrls):
    owner = await scene.running(limits=Limits(max_cost_usd=Decimal("0.100001")))
    wanted = intent(owner, reservation=Usage(cost_usd=Decimal("0.000002")))
    await scene.store.journal.open(owner, wanted, event=INTENDED)
    await scene.store.journal.close(
        owner, outcome(wanted.call_id, usage=Usage(cost_usd=Decimal("0.000001"))), event=RETURNED
    )
    async with admin(database_urls) as conn:
        budget = await (await conn.execute("select * from budgets where budget_id = %s", [owner.run_id])).fetchone()
        call = await (await conn.execute("select * from calls")).fetchone()
    assert (budget["max_cost"], budget["spent_cost"], budget["reserved_cost"]) == (100_001, 1, 0)
    assert (call["reserved"]["cost"], call["used"]["cost"]) == (2, 1)


async def test_a_request_is_kept_as_canonical_json(scene: Scene, database_urls: DatabaseUrls):
    owner = await scene.running()
    await scene.store.journal.open(owner, intent(owner, args={"b": 1.0, "a": "é"}), event=INTENDED)
    async with admin(database_urls) as conn:
        call = await (await conn.execute("select request from calls")).fetchone()
    assert call["request"] == '{"a":"é","b":1}'.encode()


@pytest.mark.parametrize("bad", [{"text": "\x00"}, {"number": float("nan")}, {"thing": object()}])
async def test_what_has_no_canonical_json_is_refused_and_leaves_no_trace(scene: Scene, database: Database, bad):
    owner = await scene.running()
    wanted = intent(owner)
    await scene.store.journal.open(owner, wanted, event=INTENDED)
    with pytest.raises(InvalidRequest):
        await scene.store.journal.close(owner, outcome(wanted.call_id, response=bad), event=RETURNED)
    [record] = await scene.store.journal.of_run("acme", owner.run_id)
    assert record.status == "open"
    await assert_invariants(database)


@pytest.mark.parametrize(
    ("ill", "reason"),
    [("used_at = clock_timestamp()", "used once"), ("expires_at = clock_timestamp()", "has expired")],
)
async def test_a_grant_that_is_used_or_expired_lets_nothing_act(
    scene: Scene, database_urls: DatabaseUrls, ill: str, reason: str
):
    owner = await scene.running()
    wanted = intent(owner)
    approval = await scene.decide(await scene.asked(owner, wanted), granted="digest")
    async with admin(database_urls) as conn:
        await conn.execute(f"update approvals set {ill}")
    with pytest.raises(PolicyDenied, match=reason):
        await scene.store.journal.open(owner, replace(wanted, grant=approval.id), event=INTENDED)
    assert (await scene.budget(owner)).reserved == Usage()


async def test_no_error_of_the_driver_comes_through(scene: Scene, database: Database):
    owner = await scene.running()
    await database.close()
    with pytest.raises(HoldfastError) as refused:
        await scene.store.journal.open(owner, intent(owner), event=INTENDED)
    assert refused.value.retryable
