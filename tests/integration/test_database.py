"""The way to Postgres: whose rows a transaction sees, and what its errors become."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import psycopg
import pytest
from fix_database import DatabaseUrls
from fix_proxy import Proxy
from psycopg_pool.pool_async import WaitingClient

from holdfast.checkpoints.database import Database, Hint, PoolSizes, StoreTerms
from holdfast.contracts.errors import (
    ConfigurationError,
    Conflict,
    InvalidRequest,
    InvariantViolated,
    NotFound,
    StoreUnavailable,
)
from holdfast.contracts.patience import patient

NEW_TENANT = "insert into tenants (tenant_id, terms, budget_id) values (%s, '{}', gen_random_uuid())"
IMPATIENT = StoreTerms(lock_seconds=0.1, statement_seconds=0.2, transaction_seconds=0.4)
DROP_CONNECTIONS = """select pg_terminate_backend(pid) from pg_stat_activity
                       where datname = current_database() and pid <> pg_backend_pid()"""


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(statement.encode())


async def make_tenant(database: Database, name: str) -> None:
    async with database.tenant(name) as conn:
        await conn.execute(NEW_TENANT, [name])


async def names_seen(database: Database, *tenants: str) -> list[str]:
    async with database.tenants(tenants) as conn:
        rows = await (await conn.execute("select tenant_id from tenants order by 1")).fetchall()
    return [row["tenant_id"] for row in rows]


async def test_tenant_sees_its_own_rows_alone(database: Database) -> None:
    for name in ("acme", "bolt", "core"):
        await make_tenant(database, name)
    assert await names_seen(database, "acme") == ["acme"]
    assert await names_seen(database, "acme", "core") == ["acme", "core"]
    assert await names_seen(database) == []


async def test_tenant_cannot_write_a_row_of_another(database: Database) -> None:
    with pytest.raises(NotFound):
        async with database.tenant("acme") as conn:
            await conn.execute(NEW_TENANT, ["bolt"])


@pytest.mark.parametrize("name", ["", "acme,bolt", "a\x00b"])
async def test_text_that_would_name_other_tenants_is_refused(database: Database, name: str) -> None:
    with pytest.raises(InvalidRequest, match="not a tenant id"):
        async with database.tenant(name):
            pass


async def test_what_was_written_is_gone_when_the_block_fails(database: Database) -> None:
    async def write_and_fail() -> None:
        async with database.tenant("acme") as conn:
            await conn.execute(NEW_TENANT, ["acme"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write_and_fail()
    assert await names_seen(database, "acme") == []


async def test_tenant_of_one_transaction_is_forgotten_by_the_next(database_urls: DatabaseUrls) -> None:
    async with Database(database_urls.app, PoolSizes(app=1, engine=1)) as database:
        await make_tenant(database, "acme")
        async with database.tenants([]) as conn:
            setting = await (await conn.execute("select current_setting('holdfast.tenants') as names")).fetchone()
    assert setting == {"names": ""}


async def test_rule_of_the_database_explains_itself(database: Database) -> None:
    await make_tenant(database, "acme")
    statement = "insert into budgets (budget_id, tenant_id, kind) values (gen_random_uuid(), 'acme', 'whim')"
    with pytest.raises(InvariantViolated, match="rule: a budget is of a known kind") as caught:
        async with database.tenant("acme") as conn:
            await conn.execute(statement)
    assert caught.value.facts["constraint"] == "a_budget_is_of_a_known_kind"


async def test_same_row_twice_is_a_conflict(database: Database) -> None:
    await make_tenant(database, "acme")
    with pytest.raises(Conflict):
        await make_tenant(database, "acme")


async def test_engine_sees_every_tenants_runs_and_none_of_their_input(database: Database) -> None:
    async with database.engine() as conn:
        await conn.execute("select run_id, tenant_id, status from runs")
    with pytest.raises(ConfigurationError, match="permission denied"):
        async with database.engine() as conn:
            await conn.execute("select input from runs")


async def test_app_is_not_the_engine_by_itself(database: Database) -> None:
    await make_tenant(database, "acme")
    async with database.engine() as conn:
        assert len(await (await conn.execute("select tenant_id from tenants")).fetchall()) == 1
    assert await names_seen(database) == []


async def test_superuser_is_refused(database_urls: DatabaseUrls) -> None:
    with pytest.raises(ConfigurationError, match="row-level security does not hold for the login 'postgres'"):
        await Database(database_urls.admin).verify()


async def test_owner_of_the_tables_is_refused(database_urls: DatabaseUrls) -> None:
    with pytest.raises(ConfigurationError, match="owns the tables"):
        await Database(database_urls.owner).verify()


async def test_database_without_tables_is_told_to_upgrade(empty_database: DatabaseUrls) -> None:
    with pytest.raises(ConfigurationError, match="run: holdfast db upgrade"):
        await Database(empty_database.app).open()


async def test_older_database_is_told_to_upgrade(database_urls: DatabaseUrls) -> None:
    newest = "select max(number) from applied_migrations where phase = 'pre'"
    execute(database_urls.owner, f"delete from applied_migrations where phase = 'pre' and number = ({newest})")
    with pytest.raises(ConfigurationError, match=r"lacks 1 migration.*run: holdfast db upgrade"):
        await Database(database_urls.app).verify()


LATER = "insert into applied_migrations (number, phase, name, checksum) values (99, '{}', 'later', 'x')"


async def test_database_that_newer_code_has_added_to_is_fit(database_urls: DatabaseUrls) -> None:
    execute(database_urls.owner, LATER.format("pre"))
    await Database(database_urls.app).verify()


async def test_database_that_newer_code_has_taken_from_is_refused(database_urls: DatabaseUrls) -> None:
    execute(database_urls.owner, LATER.format("post"))
    with pytest.raises(ConfigurationError, match=r"post migration 0099 later.*newer"):
        await Database(database_urls.app).verify()


async def test_post_migration_of_this_code_may_be_missing(database_urls: DatabaseUrls) -> None:
    execute(database_urls.owner, "delete from applied_migrations where phase = 'post'")
    await Database(database_urls.app).verify()


async def test_address_that_cannot_be_read_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL cannot be read") as caught:
        Database("postgresql//app:secret@host/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("dsn", ["postgresql://app@127.0.0.1:9/x", "postgresql://app@/x?host=/nowhere"])
async def test_unreachable_server_is_unavailable_in_one_line(dsn: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        await Database(dsn).open()
    assert "\n" not in str(caught.value)


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Processes of the server that a test has stopped; they go on afterwards."""
    if "HOLDFAST_TEST_DSN" in os.environ:
        pytest.skip("the server's processes may be out of reach")
    pids: list[int] = []
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


async def ask_the_deaf(database: Database, stopped: list[int], deaf: asyncio.Event) -> None:
    async with database.tenant("acme") as conn:
        row = await (await conn.execute("select pg_backend_pid() as pid")).fetchone()
        assert row
        os.kill(row["pid"], signal.SIGSTOP)
        stopped.append(row["pid"])
        deaf.set()
        await conn.execute("select 1")


async def test_deaf_server_does_not_hold_a_transaction_for_ever(
    database_urls: DatabaseUrls, stopped: list[int]
) -> None:
    async with Database(database_urls.app, terms=IMPATIENT) as database:
        with pytest.raises(StoreUnavailable):
            await ask_the_deaf(database, stopped, asyncio.Event())
        assert await names_seen(database, "acme") == []


async def test_cancelled_caller_is_not_held_by_a_deaf_server(database_urls: DatabaseUrls, stopped: list[int]) -> None:
    async with Database(database_urls.app, terms=IMPATIENT) as database:
        deaf = asyncio.Event()
        asking = asyncio.create_task(ask_the_deaf(database, stopped, deaf))
        await deaf.wait()
        asking.cancel()
        done, _ = await asyncio.wait([asking], timeout=10)
        assert done


async def test_transaction_ends_with_the_patience_of_whoever_waits_and_a_place_in_the_pool_too(
    database_urls: DatabaseUrls, proxy: Proxy
) -> None:
    async with Database(proxy.url, PoolSizes(app=1, engine=1)) as database:
        left = 60.0

        async def ask(begun: asyncio.Event) -> None:
            with patient(lambda: left):
                async with database.tenant("acme") as conn:
                    begun.set()
                    proxy.deaf()
                    await conn.execute("select 1")

        begun = asyncio.Event()
        asking = asyncio.create_task(ask(begun))
        await begun.wait()
        queueing = asyncio.create_task(ask(asyncio.Event()))
        await asyncio.sleep(0)
        left = 0.0
        said = await asyncio.wait_for(asyncio.gather(asking, queueing, return_exceptions=True), 10)
        assert [type(error) for error in said] == [StoreUnavailable, StoreUnavailable]
        proxy.start()
        with patient(lambda: 30.0):
            assert await names_seen(database, "acme") == []


async def test_server_stops_working_for_whoever_hung_up(database: Database, database_urls: DatabaseUrls) -> None:
    clock = asyncio.get_running_loop().time
    end = clock() + 0.2
    with pytest.raises(StoreUnavailable, match="did not answer in time"), patient(lambda: end - clock()):
        async with database.tenant("acme") as conn:
            await conn.execute("select pg_sleep(14)")
    query = "select count(*) from pg_stat_activity where query like '%pg_sleep(14)%' and pid <> pg_backend_pid()"
    with psycopg.connect(database_urls.admin, autocommit=True) as conn:
        async with asyncio.timeout(10):
            while conn.execute(query).fetchone() != (0,):  # noqa: ASYNC110  # only the server knows
                await asyncio.sleep(0.05)


async def test_statement_that_takes_too_long_is_ended_by_the_server(database_urls: DatabaseUrls) -> None:
    terms = StoreTerms(lock_seconds=0.1, statement_seconds=0.2, transaction_seconds=5)
    async with Database(database_urls.app, terms=terms) as database:
        with pytest.raises(StoreUnavailable, match="statement timeout"):
            async with database.tenant("acme") as conn:
                await conn.execute("select pg_sleep(30)")


async def test_full_pool_is_unavailable_after_a_while(database_urls: DatabaseUrls) -> None:
    terms = StoreTerms(acquire_seconds=0.2)
    async with Database(database_urls.app, PoolSizes(app=1, engine=1), terms) as database, database.tenant("acme"):
        with pytest.raises(StoreUnavailable, match="couldn't get a connection"):
            async with database.tenant("bolt"):
                pass


async def test_cancellation_that_comes_together_with_a_connection_is_not_forgotten(
    database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = WaitingClient.set

    async def set_and_cancel(waiting: Any, conn: Any) -> bool:
        taken = await really(waiting, conn)
        caller.cancel()
        return taken

    async def use() -> None:
        async with database.unbound():
            pass
        await asyncio.Event().wait()  # whoever comes here has forgotten it

    async with Database(database_urls.app, PoolSizes(app=1, engine=1)) as database:
        async with database.unbound():
            caller = asyncio.create_task(use())
            while not database._app.get_stats().get("requests_waiting"):  # noqa: ASYNC110  # the pool tells nobody
                await asyncio.sleep(0)
            monkeypatch.setattr(WaitingClient, "set", set_and_cancel)
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(10):
                await caller
        monkeypatch.undo()
        async with database.unbound() as conn:  # and the connection is back
            await conn.execute("select 1")


async def test_connections_that_the_server_dropped_are_replaced(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await make_tenant(database, "acme")
    execute(database_urls.admin, DROP_CONNECTIONS)
    assert await names_seen(database, "acme") == ["acme"]


async def test_listener_hears_of_work_and_survives_a_lost_connection(
    database: Database, database_urls: DatabaseUrls
) -> None:
    async with aclosing(database.listen()) as heard:
        assert await anext(heard) == Hint()
        execute(database_urls.owner, "notify holdfast_runs, 'acme'")
        assert await anext(heard) == Hint()
        execute(database_urls.admin, DROP_CONNECTIONS)
        assert await anext(heard) == Hint()
        execute(database_urls.owner, "notify holdfast_runs, 'stop 7'")
        assert await anext(heard) == Hint(stop="7")


async def test_every_connection_has_the_timeouts_that_follow_from_the_lease(database_urls: DatabaseUrls) -> None:
    query = (
        "select current_setting('statement_timeout') as statement, current_setting('lock_timeout') as lock, "
        "current_setting('idle_in_transaction_session_timeout') as idle"
    )
    async with Database(database_urls.app, terms=StoreTerms.within(4.0)) as database:
        async with database.tenant("acme") as app, database.engine() as engine:
            found = [await (await conn.execute(query)).fetchone() for conn in (app, engine)]
        found += await database.writer._line.run(query, {}, tenants=frozenset())
        found += await database.reader._line.run(query, {}, tenants=frozenset())
    four = {"statement": "4s", "lock": "4s", "idle": "4s"}
    assert found == [four, four, four | {"lock": "2s"}, four], (
        "the writer, for whom all wait, waits for no lock so long"
    )


def test_statement_that_may_outlast_the_lease_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"statement_seconds is 5, .* for 4 s .* Set at most 4, or a longer"):
        StoreTerms.within(4.0, statement_seconds=5.0)


@pytest.mark.parametrize("terms", [{"lock_seconds": 20.0, "statement_seconds": 10.0}, {"connect_seconds": 0.0}])
def test_terms_that_contradict_each_other_are_refused(terms: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        StoreTerms(**terms)


def test_pool_without_connections_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        PoolSizes(app=0)
