"""The schema: brought up once, by whoever comes first, and never by code that does not know it."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files

import psycopg
import pytest
from fix_database import DatabaseUrls, ServerUnderTest
from versions import THIS

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.embedded import EmbeddedServer
from holdfast.checkpoints.migrating import standing, upgrade
from holdfast.checkpoints.schema import Phase, migrations, newest
from holdfast.contracts.errors import ConfigurationError, StoreUnavailable


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


PRE, POST = ([each for each in migrations() if each.phase is phase] for phase in Phase)


def test_new_database_gets_everything_at_once(empty_database: DatabaseUrls) -> None:
    assert standing(empty_database.owner).pending == migrations() == PRE + POST
    assert upgrade(empty_database.owner) == PRE + POST
    assert standing(empty_database.app).pending == upgrade(empty_database.owner, finish=True) == []


def test_upgrade_applies_what_the_new_code_needs_and_finish_the_rest(first_database: DatabaseUrls) -> None:
    assert standing(first_database.app).pending == PRE[2:] + POST
    assert upgrade(first_database.owner) == PRE[2:]
    assert standing(first_database.owner).pending == standing(first_database.app).pending == POST
    assert upgrade(first_database.owner) == []
    assert upgrade(first_database.owner, finish=True) == POST
    assert standing(first_database.app).pending == upgrade(first_database.owner, finish=True) == []


def ten_upgrades(owner_url: str) -> list[str]:
    """The migrations that ten processes say they applied, all at once."""
    processes = [THIS.begin_upgrade(owner_url) for _ in range(10)]
    said = [process.communicate(timeout=110)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 10, said
    return sorted(name for each in said for name in json.loads(each))


def test_ten_processes_that_make_a_new_database_apply_each_migration_once(empty_database: DatabaseUrls) -> None:
    assert ten_upgrades(empty_database.owner) == sorted(map(str, migrations()))


def test_ten_processes_that_upgrade_an_old_database_apply_each_migration_once(first_database: DatabaseUrls) -> None:
    assert ten_upgrades(first_database.owner) == sorted(map(str, PRE[2:]))


def test_first_versions_list_is_kept_until_nobody_reads_it(first_database: DatabaseUrls) -> None:
    upgrade(first_database.owner)
    assert execute(first_database.app, "select number from holdfast_migrations") == [(1,), (2,)]
    upgrade(first_database.owner, finish=True)
    assert execute(first_database.app, "select to_regclass('holdfast_migrations')") == [(None,)]


@pytest.mark.parametrize(
    ("name", "admitted"),
    [
        ("holdfast", False),
        ("holdfast schema 2", False),
        ("holdfast schema 2 heartbeat", False),
        (f"holdfast schema {newest()} heartbeat", True),
        ("holdfast db upgrade", True),
        ("psql", True),
    ],
)
def test_nothing_is_taken_away_from_an_older_process(first_database: DatabaseUrls, name: str, admitted: bool) -> None:
    upgrade(first_database.owner)
    with psycopg.connect(first_database.app, application_name=name) as older:
        if not admitted:
            with pytest.raises(ConfigurationError, match=r"older version are connected.*0003 first_list \(post\)"):
                upgrade(first_database.owner, finish=True)
            assert standing(first_database.owner).pending == POST
            older.close()
        assert upgrade(first_database.owner, finish=True) == POST


async def test_process_of_this_version_does_not_hold_up_the_finish(first_database: DatabaseUrls) -> None:
    upgrade(first_database.owner)
    async with Database(first_database.app):
        assert await asyncio.to_thread(lambda: upgrade(first_database.owner, finish=True)) == POST


def test_migration_that_was_applied_with_other_contents_is_refused(database_urls: DatabaseUrls) -> None:
    execute(database_urls.owner, "update applied_migrations set checksum = 'other' where number = 1")
    with pytest.raises(ConfigurationError, match=r"migration 0001 house \(pre\) was applied .* with other contents"):
        upgrade(database_urls.owner)
    with pytest.raises(ConfigurationError, match="other contents"):
        standing(database_urls.app)


@pytest.mark.parametrize("phase", Phase)
def test_older_upgrade_leaves_a_newer_database_as_it_is(database_urls: DatabaseUrls, phase: Phase) -> None:
    later = f"insert into applied_migrations (number, phase, name, checksum) values (99, '{phase}', 'later', 'x')"
    execute(database_urls.owner, later)
    if phase is Phase.PRE:
        assert upgrade(database_urls.owner, finish=True) == []
    else:
        with pytest.raises(ConfigurationError, match=r"post migration 0099 later.*newer"):
            upgrade(database_urls.owner)


def test_files_that_were_released_are_what_they_were() -> None:
    released = {
        "0001_house.sql": "5a9d4f76ec55a25ba4e4b00652e9cd391a892b691d4ce196e6dddee70d0fa66a",
        "0002_langgraph.sql": "f343901229a8754776133925ed3f38b7d654c89698295abf2382ad7cc8e2454a",
    }
    folder = files("holdfast.checkpoints") / "migrations"
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in released}
    assert found == released


def test_migration_that_fails_leaves_nothing_behind(empty_database: DatabaseUrls) -> None:
    execute(empty_database.owner, "create table checkpoints (of_somebody_else integer)")
    with pytest.raises(ConfigurationError, match=r"migration 0002 .* a database of its own"):
        upgrade(empty_database.owner)
    assert [row["number"] for row in standing(empty_database.owner).applied] == [1]
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


def test_upgrade_by_a_login_that_does_not_own_the_database_is_told_so(empty_database: DatabaseUrls) -> None:
    with pytest.raises(ConfigurationError, match=r"'holdfast_app'.*HOLDFAST_OWNER_DATABASE_URL") as refused:
        upgrade(empty_database.app)
    assert "run: holdfast db upgrade" not in str(refused.value)


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
