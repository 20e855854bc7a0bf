"""Every named query is one that Postgres can plan, under a role that may run it."""

import os
from collections.abc import Iterator
from importlib.resources import files

import pytest
from fix_database import ServerUnderTest
from plans import Logins, logins, role_of, statement

from holdfast.checkpoints.queries import load_queries, parse_queries
from holdfast.contracts.errors import ConfigurationError

FILES = sorted(path.name for path in files("holdfast.checkpoints").iterdir() if path.name.endswith(".sql"))
QUERIES = [
    pytest.param(query, id=f"{file.removesuffix('.sql')}.{name}")
    for file in FILES
    for name, query in load_queries("holdfast.checkpoints.x", file).items()
]


@pytest.fixture(scope="module")
def opened(postgres: ServerUnderTest, template: str) -> Iterator[Logins]:
    name = f"holdfast_explained_{os.getpid()}"
    with logins(postgres.create(name, template=template)) as opened:
        yield opened
    postgres.drop(name)


@pytest.mark.parametrize("query", QUERIES)
def test_query_has_a_plan_under_a_role_that_may_run_it(query: str, opened: Logins) -> None:
    assert role_of(query, opened) is not None, "no role of ours may run this query"


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
