"""Every named query is one that Postgres can plan, under a role that may run it."""

import os
import re
from collections.abc import Iterator
from importlib.resources import files

import psycopg
import pytest
from fix_database import ServerUnderTest

from holdfast.checkpoints.queries import load_queries, parse_queries
from holdfast.contracts.errors import ConfigurationError

FILES = sorted(path.name for path in files("holdfast.checkpoints").iterdir() if path.name.endswith(".sql"))
QUERIES = [
    pytest.param(query, id=f"{file.removesuffix('.sql')}.{name}")
    for file in FILES
    for name, query in load_queries("holdfast.checkpoints.x", file).items()
]
PLANNED = ("select", "insert", "update", "delete", "with")
RUN_AT_EVERY_START = ("create role", "create table", "create database", "grant", "listen")
"""Statements without a plan. Each is run whenever a server is made, upgraded or listened to."""
THE_FIRST_VERSIONS_LIST = """
create table holdfast_migrations (number integer primary key, name text, checksum text, applied_at timestamptz)"""
"""Read where it is still there, and gone from a database that is finished."""


def statement(query: str) -> str:
    return re.sub(r"\A(--.*\n)+", "", query)


def numbered(query: str) -> str:
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query)))
    return re.sub(r"%\((\w+)\)s", lambda match: f"${names.index(match[1]) + 1}", query).replace("%%", "%")


@pytest.fixture(scope="module")
def logins(postgres: ServerUnderTest, template: str) -> Iterator[list[psycopg.Connection]]:
    name = f"holdfast_explained_{os.getpid()}"
    urls = postgres.create(name, template=template)
    with psycopg.connect(urls.owner, autocommit=True) as conn:
        conn.execute(THE_FIRST_VERSIONS_LIST)
    options = ["", "-c role=holdfast_engine", "", ""]
    addresses = [urls.app, urls.app, urls.owner, urls.admin]
    opened = [
        psycopg.connect(url, autocommit=True, options=option) for url, option in zip(addresses, options, strict=True)
    ]
    yield opened
    for conn in opened:
        conn.close()
    postgres.drop(name)


@pytest.mark.parametrize("query", QUERIES)
def test_query_has_a_plan_under_a_role_that_may_run_it(query: str, logins: list[psycopg.Connection]) -> None:
    if not statement(query).lower().startswith(PLANNED):
        assert statement(query).lower().startswith(RUN_AT_EVERY_START)
        return
    for conn in logins:
        try:
            conn.execute(f"explain (generic_plan) {numbered(query)}".encode())
        except psycopg.errors.InsufficientPrivilege:
            continue
        return
    pytest.fail("no role of ours may run this query")


def test_queries_come_by_name() -> None:
    text = "-- A file.\n-- name: one\n-- First.\nselect 1;\n\n-- name: two\n-- Second,\n-- in two lines.\nselect 2\n"
    queries = parse_queries(text, source="x.sql")
    assert {name: statement(query) for name, query in queries.items()} == {"one": "select 1", "two": "select 2"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("select 1\n", "before the first"),
        ("-- name:\n-- Says something.\nselect 1\n", "missing"),
        ("-- name: a\n-- One.\nselect 1\n-- name: a\n-- Two.\nselect 2\n", "used twice"),
        ("-- name: a\nselect 1\n", "needs a sentence"),
        ("-- name: a\n-- Only words.\n", "needs a sentence"),
    ],
)
def test_file_that_nobody_could_read_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        parse_queries(text, source="x.sql")
