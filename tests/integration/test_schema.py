"""The schema as one text, which shows a reviewer what a migration changes."""

import psycopg
import pytest
from fix_database import DatabaseUrls
from schema import FILE, schema

CHANGES = [
    "alter table runs add column shade text",
    "alter table runs alter column attempt set default 1",
    "alter table runs alter column input_type drop not null",
    "alter table runs drop constraint a_failed_run_has_a_cause",
    "alter table leases reset (fillfactor)",
    "alter table leases no force row level security",
    "drop index runs_to_claim",
    "drop policy the_engine_sees_all on runs",
    "alter policy the_engine_sees_all on runs using (false)",
    "grant delete on runs to holdfast_app",
    "grant select (input) on runs to holdfast_engine",
    "drop trigger what_is_held_stays on checkpoints",
    "grant execute on function prune_events_v1 to public",
    "alter function prune_events_v1 security invoker",
    "drop aggregate event_chain_v1(bytea, bytea)",
    "drop table workers",
]


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(statement.encode())


def test_file_is_what_the_migrations_make(database_urls: DatabaseUrls) -> None:
    found, written = schema(database_urls.owner), FILE.read_text(encoding="utf-8")
    if found.splitlines()[0] != written.splitlines()[0]:
        pytest.skip("another version of Postgres has other words for the same")
    assert found == written, "run: make schema"


def test_text_makes_the_schema_that_it_was_read_from(database_urls: DatabaseUrls, empty_database: DatabaseUrls) -> None:
    text = schema(database_urls.owner)
    execute(empty_database.owner, text)
    assert schema(empty_database.owner) == text


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_the_schema_changes_the_text(database_urls: DatabaseUrls, change: str) -> None:
    before = schema(database_urls.owner)
    execute(database_urls.owner, change)
    assert schema(database_urls.owner) != before


@pytest.mark.parametrize("made", ["view v as select 1", "sequence s", "type mood as enum ('calm')", "domain d as text"])
def test_kind_of_object_that_the_text_has_no_words_for_is_refused(database_urls: DatabaseUrls, made: str) -> None:
    execute(database_urls.owner, f"create {made}")
    with pytest.raises(NotImplementedError, match="does not know how to write"):
        schema(database_urls.owner)
