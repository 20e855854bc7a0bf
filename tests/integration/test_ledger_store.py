"""What the ledger on Postgres does that only a database with others in it can show."""

import asyncio

import psycopg
import pytest
from fix_database import DatabaseUrls
from scenes import INTENDED, UNLIMITED, Scene, event, intent
from stores import postgres_store

from holdfast.checkpoints.database import Database
from holdfast.contracts.errors import BudgetExceeded
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits
from holdfast.testing.invariants import assert_invariants

OPENED = event(EventKind.BUDGET_OPENED)


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(postgres_store(database))


async def test_runs_of_several_processes_never_pass_the_tenants_limit_together(
    scene: Scene, database: Database, database_urls: DatabaseUrls
):
    async with Database(database_urls.app) as second:
        scenes = [scene, Scene(postgres_store(second))]
        owners = [await scenes[n % 2].running(limits=UNLIMITED) for n in range(4)]
        await scene.tenant(budget=Limits(max_tool_calls=5, max_cost_usd=None))
        shared = await scene.store.ledger.tenant_budget("acme")

        async def reserve(n: int):
            owner = owners[n % 4]
            wanted = intent(owner, occurrence=n, budgets=(owner.run_id, shared))
            return await scenes[n % 2].store.journal.open(owner, wanted, event=INTENDED)

        outcomes = await asyncio.gather(*(reserve(n) for n in range(16)), return_exceptions=True)
    assert [type(one) for one in outcomes if isinstance(one, BaseException)] == [BudgetExceeded] * 11
    assert (await scene.budget(owners[0], shared)).reserved.tool_calls == 5
    await assert_invariants(database)


async def test_a_share_that_two_tasks_open_at_once_is_one(scene: Scene):
    owner = await scene.running()
    opened = await asyncio.gather(
        *(
            scene.store.ledger.open_share(
                owner, parent=owner.run_id, share_key="history", limits=Limits(), event=OPENED
            )
            for _ in range(4)
        )
    )
    assert len(set(opened)) == 1
    assert (await scene.kinds(owner)).count("budget.opened") == 1


async def test_the_database_itself_refuses_to_release_more_than_was_reserved(scene: Scene, database_urls: DatabaseUrls):
    owner = await scene.running()
    with psycopg.connect(database_urls.admin) as conn, pytest.raises(psycopg.errors.CheckViolation, match="below_zero"):
        conn.execute("update budgets set reserved_tokens = -1 where budget_id = %s", [owner.run_id])


async def test_a_budget_is_not_seen_by_a_session_of_another_tenant(scene: Scene, database: Database):
    await scene.running()
    await scene.tenant("other")
    async with database.tenant("other") as conn:
        seen = await (await conn.execute("select distinct tenant_id from budgets")).fetchall()
    assert [row["tenant_id"] for row in seen] == ["other"]
