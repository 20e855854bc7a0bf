"""An upgrade that somebody's transaction is in the way of: it waits, says for whom, and is in nobody's way itself."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from fix_database import DatabaseUrls, ServerUnderTest
from versions import THIS, leave_as_the_first_version_did

from holdfast.checkpoints.embedded import EmbeddedServer
from holdfast.checkpoints.migrating import standing, upgrade
from holdfast.checkpoints.schema import Phase
from holdfast.contracts.errors import StoreUnavailable

WAITING = """
select 1 from pg_locks l join pg_stat_activity a using (pid)
 where not l.granted and a.application_name = 'holdfast db upgrade' and a.datname = current_database()"""


@contextmanager
def reader_of_runs(url: str) -> Iterator[psycopg.Connection]:
    """Somebody whose transaction has read a table that the upgrade changes, and stays open."""
    with psycopg.connect(url, application_name="monthly report") as conn:
        conn.execute("select count(*) from runs")
        yield conn


def pid(conn: psycopg.Connection) -> int:
    return conn.info.backend_pid


def test_upgrade_behind_a_long_transaction_holds_nobody_up_and_goes_on_when_it_ends(
    first_database: DatabaseUrls,
) -> None:
    with reader_of_runs(first_database.app) as reader:
        upgrading = THIS.begin("-m", "holdfast", "db", "upgrade", HOLDFAST_OWNER_DATABASE_URL=first_database.owner)
        assert upgrading.stdout
        told = upgrading.stdout.readline()
        assert re.match(rf"migration 00.* waits for pid {pid(reader)} \('monthly report' of holdfast_app, ", told)
        with (
            psycopg.connect(first_database.admin, autocommit=True) as looking,
            psycopg.connect(first_database.app, autocommit=True, options="-c lock_timeout=5s") as application,
        ):
            for _ in range(3):
                while not looking.execute(WAITING).fetchone():
                    assert upgrading.poll() is None
                application.execute("select count(*) from runs")  # queues up behind the upgrade
        reader.rollback()
        said, _ = upgrading.communicate(timeout=60)
    assert upgrading.returncode == 0, said
    assert said.startswith("applied 0004 ")
    assert {each.phase for each in standing(first_database.owner).pending} == {Phase.POST}


def test_upgrade_gives_up_after_the_time_it_was_given_and_has_done_nothing_of_it(first_database: DatabaseUrls) -> None:
    told: list[str] = []
    with reader_of_runs(first_database.app) as reader:
        with pytest.raises(StoreUnavailable) as caught:
            upgrade(first_database.owner, wait_seconds=3, tell=told.append)
        named = f"pid {pid(reader)} ('monthly report' of holdfast_app, since when is hidden from this login: "
        assert f"was given up after 3 s: it waited for {named}" in caught.value.message
        assert [line.partition(" waits for ")[2].startswith(named) for line in told] == [True]
        given_up = re.match(r"migration (\d+)", caught.value.message)
        assert given_up
        assert int(given_up[1]) in {each.number for each in standing(first_database.owner).pending}
    assert upgrade(first_database.owner)[0].number == int(given_up[1])


def test_login_that_may_see_it_is_told_since_when_the_transaction_is_open(first_database: DatabaseUrls) -> None:
    with psycopg.connect(first_database.admin, autocommit=True) as admin, reader_of_runs(first_database.app) as reader:
        [since] = reader.execute("select to_char(now() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS')").fetchone() or [""]
        admin.execute("grant pg_read_all_stats to holdfast_owner")
        try:
            with pytest.raises(StoreUnavailable, match=f"in a transaction since {since} UTC"):
                upgrade(first_database.owner, wait_seconds=2)
        finally:
            admin.execute("revoke pg_read_all_stats from holdfast_owner")


def test_second_upgrade_says_whose_it_waits_for(first_database: DatabaseUrls) -> None:
    told: list[str] = []
    with psycopg.connect(first_database.owner, application_name="holdfast db upgrade", autocommit=True) as other:
        other.execute("select pg_advisory_lock(7218540367213000)")

        def tell(line: str) -> None:
            told.append(line)
            other.execute("select pg_advisory_unlock(7218540367213000)")

        assert upgrade(first_database.owner, tell=tell)
        named = f"pid {pid(other)} ('holdfast db upgrade' of holdfast_owner, "
    assert told[0].startswith(f"this upgrade waits for {named}")


DUE_FOR_A_LONG_AUTOVACUUM = """
alter table tenants set (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0,
                         autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1);
insert into tenants (tenant_id, terms, budget_id) select n, '{}', gen_random_uuid() from generate_series(1, 50000) n;
delete from tenants where tenant_id::int % 2 = 0"""
VACUUMED = """
select 1 from pg_locks l join pg_stat_activity a using (pid)
 where a.backend_type = 'autovacuum worker' and l.relation = 'tenants'::regclass and l.granted"""


@pytest.fixture
def lonely_server() -> Iterator[EmbeddedServer]:
    """A server of the test's own, whose settings it may change."""
    server = EmbeddedServer(temporary=True)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def old_database_on(server: EmbeddedServer) -> DatabaseUrls:
    urls = ServerUnderTest(server.admin_url).create("old")
    leave_as_the_first_version_did(urls.owner)
    return urls


def test_autovacuum_gives_way_to_an_upgrade(lonely_server: EmbeddedServer) -> None:
    urls = old_database_on(lonely_server)
    with psycopg.connect(urls.admin, autocommit=True) as admin:
        admin.execute("alter system set autovacuum_naptime = 1")
        admin.execute("select pg_reload_conf()")
        admin.execute(DUE_FOR_A_LONG_AUTOVACUUM)
        while not admin.execute(VACUUMED).fetchone():
            pass  # it begins within a second or two, and takes minutes
    told: list[str] = []
    assert upgrade(urls.owner, wait_seconds=30, tell=told.append)
    assert [re.sub(r"\d+", "N", line) for line in told] == ["migration N retention (pre) waits for pid N (autovacuum)"]


def test_transaction_that_was_prepared_and_forgotten_is_named(lonely_server: EmbeddedServer) -> None:
    urls = old_database_on(lonely_server)
    with psycopg.connect(urls.admin, autocommit=True) as admin:
        admin.execute("alter system set max_prepared_transactions = 1")
    lonely_server._cluster.stop()
    lonely_server._cluster.run()
    with psycopg.connect(urls.admin, autocommit=True) as admin:
        admin.execute("begin")
        admin.execute("select count(*) from runs")
        admin.execute("prepare transaction 'forgotten'")
        with pytest.raises(StoreUnavailable, match=r"a prepared transaction \(pg_prepared_xacts names it\)"):
            upgrade(urls.owner, wait_seconds=2)
        admin.execute("rollback prepared 'forgotten'")
    assert upgrade(urls.owner)
