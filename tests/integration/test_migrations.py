"""The schema: brought up once, by whoever comes first, and never by code that does not know it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from fix_database import DatabaseUrls, ServerUnderTest

from holdfast.checkpoints.embedded import EmbeddedServer
from holdfast.checkpoints.migrating import migrations, pending, upgrade
from holdfast.contracts.errors import ConfigurationError, StoreUnavailable


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def test_upgrade_applies_what_is_pending_and_then_nothing(empty_database: DatabaseUrls) -> None:
    assert pending(empty_database.owner) == migrations()
    assert upgrade(empty_database.owner) == migrations()
    assert pending(empty_database.owner) == []
    assert pending(empty_database.app) == []
    assert upgrade(empty_database.owner) == []


def test_ten_upgrades_at_once_apply_each_migration_once(empty_database: DatabaseUrls) -> None:
    with ThreadPoolExecutor(10) as pool:
        applied = list(pool.map(lambda _: upgrade(empty_database.owner), range(10)))
    assert sorted(len(each) for each in applied) == [0] * 9 + [len(migrations())]
    rows = execute(empty_database.owner, "select number from holdfast_migrations order by 1")
    assert rows == [(migration.number,) for migration in migrations()]


def test_migration_that_was_applied_with_other_contents_is_refused(database_urls: DatabaseUrls) -> None:
    execute(database_urls.owner, "update holdfast_migrations set checksum = 'other' where number = 1")
    with pytest.raises(ConfigurationError, match=r"migration 1 \(house\) was applied .* with other contents"):
        upgrade(database_urls.owner)
    with pytest.raises(ConfigurationError, match="other contents"):
        pending(database_urls.app)


def test_database_of_a_newer_version_is_refused(database_urls: DatabaseUrls) -> None:
    execute(database_urls.owner, "insert into holdfast_migrations (number, name, checksum) values (99, 'later', 'x')")
    with pytest.raises(ConfigurationError, match=r"migration 99 \(later\).*newer"):
        upgrade(database_urls.owner)


def test_migration_that_fails_leaves_nothing_behind(empty_database: DatabaseUrls) -> None:
    upgrade(empty_database.owner)
    execute(empty_database.owner, "delete from holdfast_migrations where number = 2")
    execute(empty_database.owner, "drop table checkpoint_writes, checkpoint_blobs, checkpoint_migrations")
    with pytest.raises(ConfigurationError, match="a database of its own"):  # there are tables called checkpoints
        upgrade(empty_database.owner)
    assert execute(empty_database.owner, "select to_regclass('checkpoint_migrations')") == [(None,)]


def test_unreachable_server_is_unavailable_in_one_line() -> None:
    with pytest.raises(StoreUnavailable) as caught:
        upgrade("postgresql://someone@127.0.0.1:9/holdfast")
    assert "\n" not in str(caught.value)


@pytest.fixture
def bare_database() -> Iterator[DatabaseUrls]:
    """A database on a server of its own that has never heard of our roles, but for the owner."""
    server = EmbeddedServer(temporary=True)
    server.start()
    try:
        execute(server.admin_url, "drop database holdfast")
        for role in ("holdfast_app", "holdfast_engine"):
            execute(server.admin_url, f"drop role {role}")
        yield ServerUnderTest(server.admin_url).create("bare")
    finally:
        server.stop()


def test_owner_without_the_right_is_told_what_the_administrator_must_run(bare_database: DatabaseUrls) -> None:
    with pytest.raises(ConfigurationError, match="Have an administrator run") as caught:
        upgrade(bare_database.owner)
    for line in str(caught.value).splitlines():
        if line.endswith(";"):
            execute(bare_database.admin, line)
    assert upgrade(bare_database.owner) == migrations()


def test_owner_who_may_make_roles_makes_them(bare_database: DatabaseUrls) -> None:
    execute(bare_database.admin, "alter role holdfast_owner createrole")
    assert upgrade(bare_database.owner) == migrations()


def test_app_does_not_have_the_engines_rights_by_itself(database_urls: DatabaseUrls) -> None:
    query = """select pg_has_role('holdfast_app', 'holdfast_engine', 'USAGE'),
                      pg_has_role('holdfast_app', 'holdfast_engine', 'SET')"""
    assert execute(database_urls.app, query) == [(False, True)]


def test_every_table_with_a_tenant_is_under_row_level_security(database_urls: DatabaseUrls) -> None:
    query = """select c.relname, c.relrowsecurity and c.relforcerowsecurity,
                      exists (select from pg_policy where polrelid = c.oid and polname = 'of_the_sessions_tenants')
                 from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
                where c.relkind in ('r', 'p') order by 1"""
    rows = execute(database_urls.admin, query)
    assert len(rows) >= 12
    assert [name for name, forced, has_policy in rows if not (forced and has_policy)] == []
