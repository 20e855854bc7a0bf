"""A database for each test, copied from a migrated template (about 20 ms).

The server is a temporary embedded one, one per pytest worker; `HOLDFAST_TEST_DSN`, a superuser's address, names
another to use instead.
"""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import count

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.embedded import EmbeddedServer
from holdfast.checkpoints.migrating import make_roles, upgrade
from holdfast.checkpoints.vault import KEY_BYTES, Encryption, Keyring
from holdfast.runtime.entropy import unguessable

PASSWORD = "only-in-tests"
_numbers = count(1)


@dataclass(frozen=True)
class DatabaseUrls:
    """One database, for each of its users."""

    app: str
    owner: str
    admin: str


@dataclass(frozen=True)
class ServerUnderTest:
    """A Postgres server that tests may make databases on."""

    admin_url: str

    def urls(self, name: str) -> DatabaseUrls:
        return DatabaseUrls(
            app=self._url(name, user="holdfast_app", password=PASSWORD),
            owner=self._url(name, user="holdfast_owner", password=PASSWORD),
            admin=self._url(name),
        )

    def execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.admin_url, autocommit=True) as conn:
            conn.execute(statement)

    def create(self, name: str, *, template: str = "template0") -> DatabaseUrls:
        self.execute(
            sql.SQL("create database {} owner holdfast_owner template {}").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        return self.urls(name)

    def drop(self, name: str) -> None:
        self.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def _url(self, database: str, **changes: str) -> str:
        return make_conninfo(**(conninfo_to_dict(self.admin_url) | {"dbname": database} | changes))


@pytest.fixture(scope="session")
def postgres() -> Iterator[ServerUnderTest]:
    """The server, with our roles."""
    dsn = os.environ.get("HOLDFAST_TEST_DSN")
    if dsn is None:
        embedded = EmbeddedServer(temporary=True)
        try:
            embedded.start()
            yield ServerUnderTest(embedded.admin_url)
        finally:
            embedded.stop()
        return
    server = ServerUnderTest(dsn)
    make_roles(dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        if not conn.execute("select 1 from pg_roles where rolname = 'holdfast_owner'").fetchone():
            conn.execute("create role holdfast_owner login")
        for role in ("holdfast_owner", "holdfast_app"):
            conn.execute(f"alter role {role} password '{PASSWORD}'")
    yield server


@pytest.fixture(scope="session")
def template(postgres: ServerUnderTest) -> Iterator[str]:
    """The name of a migrated database that nobody is connected to."""
    name = f"holdfast_template_{os.getpid()}"
    upgrade(postgres.create(name).owner, finish=True)
    yield name
    postgres.drop(name)


@pytest.fixture
def empty_database(postgres: ServerUnderTest) -> Iterator[DatabaseUrls]:
    """A database that was never upgraded."""
    name = f"holdfast_empty_{os.getpid()}_{next(_numbers)}"
    yield postgres.create(name)
    postgres.drop(name)


@pytest.fixture
def database_urls(postgres: ServerUnderTest, template: str) -> Iterator[DatabaseUrls]:
    """A migrated database of the test's own."""
    name = f"holdfast_test_{os.getpid()}_{next(_numbers)}"
    yield postgres.create(name, template=template)
    postgres.drop(name)


def encrypting(*key_ids: str, seals_with: str | None = None) -> Encryption:
    """Encryption with keys of these ids, the last of which seals."""
    keys = {key_id: key_id.encode().ljust(KEY_BYTES, b".") for key_id in key_ids}
    return Encryption(Keyring(keys, seals_with=seals_with or key_ids[-1]), unguessable)


@pytest.fixture
def encryption() -> Encryption | None:
    """What the database is encrypted with: nothing, unless the test says so."""
    return None


@pytest.fixture
async def database(database_urls: DatabaseUrls, encryption: Encryption | None) -> AsyncIterator[Database]:
    """It, open, as the application sees it."""
    async with Database(database_urls.app, encryption=encryption) as database:
        yield database
