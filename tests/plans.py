"""Has Postgres a plan for a query, and under which of our logins?"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import psycopg
from fix_database import DatabaseUrls

PLANNED = ("select", "insert", "update", "delete", "with")
RUN_AT_EVERY_START = ("create role", "create table", "create database", "grant", "listen")
"""Statements without a plan. Each is run whenever a server is made, upgraded or listened to."""
THE_FIRST_VERSIONS_LIST = """
create table if not exists holdfast_migrations
    (number integer primary key, name text, checksum text, applied_at timestamptz)"""
"""Read where it is still there, and gone from a database that is finished."""

Logins = Mapping[str, psycopg.Connection]


def statement(query: str) -> str:
    return re.sub(r"\A(--.*\n)+", "", query)


def numbered(query: str) -> str:
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query)))
    return re.sub(r"%\((\w+)\)s", lambda match: f"${names.index(match[1]) + 1}", query).replace("%%", "%")


@contextmanager
def logins(urls: DatabaseUrls) -> Iterator[Logins]:
    """Connections to the database under each role that runs queries of ours, the weakest first."""
    with (
        psycopg.connect(urls.owner, autocommit=True) as owner,
        psycopg.connect(urls.app, autocommit=True) as app,
        psycopg.connect(urls.app, autocommit=True, options="-c role=holdfast_engine") as engine,
        psycopg.connect(urls.admin, autocommit=True) as admin,
    ):
        owner.execute(THE_FIRST_VERSIONS_LIST)
        yield {"app": app, "engine": engine, "owner": owner, "admin": admin}


def role_of(query: str, logins: Logins) -> str | None:
    """The first role that may run the query, by Postgres' plan for it; `owner` for what has none, None for nobody."""
    if not statement(query).lower().startswith(PLANNED):
        assert statement(query).lower().startswith(RUN_AT_EVERY_START)
        return "owner"
    for role, conn in logins.items():
        with suppress(psycopg.errors.InsufficientPrivilege):
            conn.execute(f"explain (generic_plan) {numbered(query)}".encode())
            return role
    return None
