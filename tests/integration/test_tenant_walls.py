"""One tenant's story is played beside another's, who has the same one; then every statement that was sent for it is
sent again without its conditions, and shows, changes and locks nothing of the other's.
"""

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from fix_database import DatabaseUrls, ServerUnderTest, encrypting
from mutilation import conditions, mutilated, relations, written
from pglast import parse_sql
from stories import TENANTS, Story, share_a_process
from walls import Court, court, ripen, stand_alone, tables, without_others
from wiretap import Recorder, Sent, named_queries, numbered

from holdfast.checkpoints.encrypting import encrypt
from holdfast.checkpoints.sealed_documents import APPROVALS, CALLS, RUNS

ACME, BOLT = TENANTS
APP, ENGINE = "holdfast_app", "holdfast_engine"
FOR_WHOM = ("slots", "epochs", "epoch", "of_tenants", "budget_tenant", "tenants", "tenant_id")
"""Parameters of what is sent for several tenants together that say for whom each part of it is."""
IN_NO_STORY = {
    "invariants": "whoever looks after a database checks all of it, in the name of no tenant (`holdfast.testing`)",
}
"""Files of queries that nothing sends which a tenant asks for, and why."""
RECORD = (Path(__file__).parents[2] / "docs" / "decisions" / "0005-tenants.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Told:
    """What was sent while the stories were told, and two databases as they left them."""

    sent: Sequence[Sent]
    shared: DatabaseUrls
    alone: DatabaseUrls
    things: frozenset[str]
    """The tables whose rows have a tenant, and the functions that read or write them."""

    def concerns_tenants(self, text: str) -> bool:
        return not relations(text).isdisjoint(self.things)

    def of(self, *, role: str, tenants: str | None = None) -> Sequence[Sent]:
        """One of each statement of a role in the name of `tenants` that concerns what a tenant has."""
        found = {each.shape: each for each in self.sent if each.role == role and tenants in (None, each.tenants)}
        return [each for each in found.values() if self.concerns_tenants(each.text)]


@pytest.fixture(scope="module")
def told(postgres: ServerUnderTest, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    name = f"holdfast_walls_{os.getpid()}"
    urls = postgres.create(name, template=template)
    with psycopg.connect(urls.admin) as conn:
        things = frozenset([*tables(conn), *recorded("Functions with statements of their own")])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("no project"))
        asyncio.run(Story(BOLT, urls).play())
        with Recorder() as recorder:
            asyncio.run(Story(ACME, urls).play())
            asyncio.run(share_a_process(urls, Story(ACME, urls), Story(BOLT, urls)))
            copies = {each: postgres.create(f"{name}_{each}", template=name) for each in ("shared", "alone", "sealed")}
            as_encryption_wants_it(copies["sealed"].admin)
            asyncio.run(encrypt(copies["sealed"].app, encrypting("k1")))
    for each in ("shared", "alone"):
        stand_alone(copies[each].admin)
        ripen(copies[each].admin)
    without_others(copies["alone"].admin, ACME)
    yield Told(recorder.sent, copies["shared"], copies["alone"], things)
    for each in (*(f"{name}_{copy}" for copy in copies), name):
        postgres.drop(each)


def as_encryption_wants_it(admin_url: str) -> None:
    """No run at work, and no checkpoint of an old LangGraph; the other tenant's rows would only take time."""
    without_others(admin_url, ACME, but=["tenants"])
    with psycopg.connect(admin_url, autocommit=True) as conn:
        conn.execute("delete from leases")
        conn.execute("update checkpoints set checkpoint = checkpoint || jsonb_build_object('v', 4)")


@pytest.fixture(scope="module")
def trial(told: Told) -> Iterator[Court]:
    with court(told.shared, told.alone, ACME, (BOLT,)) as trial:
        yield trial


@pytest.fixture(autouse=True)
def nothing_told_yet(request: pytest.FixtureRequest) -> None:
    if "trial" in request.fixturenames:
        request.getfixturevalue("trial").leaks.clear()


def recorded(heading: str) -> set[str]:
    """The names in the first column of the table below a heading of the decision record."""
    table = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", RECORD, re.MULTILINE | re.DOTALL)
    assert table is not None, f"the decision record says nothing of {heading!r}"
    cells = [line.split("|")[1] for line in table[1].splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


class TestStory:
    def test_other_tenant_has_rows_in_every_table_that_has_tenants(self, trial: Court) -> None:
        assert trial.missing() == []

    def test_every_query_that_concerns_tenants_is_sent_in_it_or_named_with_its_reason(self, told: Told) -> None:
        sent = {each.name for each in told.sent}
        concerned = {name for name, query in named_queries().items() if told.concerns_tenants(numbered(query))}
        left = {name.split(".")[0] for name in concerned - sent}
        assert left == set(IN_NO_STORY), sorted(concerned - sent)
        assert not {name for name in sent if name.split(".")[0] in IN_NO_STORY}


class TestOneTenant:
    def test_statement_without_its_conditions_shows_changes_and_locks_nothing_of_another_tenant(
        self, told: Told, trial: Court
    ) -> None:
        statements = told.of(role=APP, tenants=ACME)
        assert len({each.name for each in statements}) > 100
        not_tried = [complaint for each in statements for complaint in trial.try_all(each)]
        assert trial.leaks == []
        assert not_tried == []
        assert trial.came_to["ran"] > 2 * len(statements)

    def test_function_without_a_statements_conditions_shows_changes_and_locks_nothing_of_another_tenant(
        self, told: Told, trial: Court
    ) -> None:
        assert trial.functions.keys() == recorded("Functions with statements of their own")
        assert trial.try_functions(told.of(role=APP, tenants=ACME)) == []
        assert trial.leaks == []

    def test_statement_in_nobodys_name_concerns_no_tenant(self, told: Told) -> None:
        assert [each.name for each in told.of(role=APP, tenants="")] == []
        assert {each.role for each in told.sent} == {APP, ENGINE}


class TestSeveralTenants:
    def test_queries_that_work_for_several_tenants_are_those_of_the_decision_record(self, told: Told) -> None:
        together = {each.name for each in told.of(role=APP) if "," in each.tenants}
        assert together == recorded("Queries that work for several tenants at once")

    def test_what_is_sent_together_with_others_shows_and_changes_nothing_of_theirs(
        self, told: Told, trial: Court
    ) -> None:
        statements = sent_together(told)
        for sent in statements:
            for keeps in (FOR_WHOM, (*FOR_WHOM, "runs", "run_id")):
                assert trial.try_among_others(sent, keeps) == []
        assert trial.leaks == []
        assert {sent.name.split(".")[0] for sent in statements} == {"reader", "writer"}

    @pytest.mark.parametrize("name", ["latest_checkpoints", "calls_of_tasks", "approvals_of_tasks"])
    def test_leak_is_found_where_nobody_says_for_whom_is_asked(self, told: Told, trial: Court, name: str) -> None:
        for sent in sent_together(told):
            if sent.name == f"reader.{name}":
                [lax] = [each for each in mutilated(sent) if each.form == "without its tenant"]
                trial.try_among_others(lax.sent_as(sent), FOR_WHOM)
        assert trial.leaks != []

    def test_change_is_found_where_a_flush_may_be_of_any_tenant(self, told: Told, trial: Court) -> None:
        lax = trial.without_tenants("flush_v2")
        for sent in sent_together(told):
            if sent.name == "writer.flush":
                trial.try_among_others(sent, FOR_WHOM, first=(lax,))
        changed = {leak.split(" changed ")[1] for leak in trial.leaks if " changed " in leak}
        assert {"run_heads", "budgets"} <= changed


def sent_together(told: Told) -> Sequence[Sent]:
    """One tenant's part of what is sent for several tenants at once: one of each shape, and the latest of each name."""
    sent = [each for each in told.sent if each.tenants == ACME and each.name.startswith(("reader.", "writer."))]
    latest = [each for name in {each.name for each in sent} for each in [one for one in sent if one.name == name][-6:]]
    return [*{each.shape: each for each in sent}.values(), *latest]


class TestAcrossTenants:
    def test_queries_of_the_engine_are_those_of_the_decision_record(self, told: Told) -> None:
        assert {each.name for each in told.of(role=ENGINE)} == recorded("Queries that cross tenants")

    def test_engine_touches_the_tables_of_the_decision_record_and_reads_nothing_that_is_sealed(
        self, database_urls: DatabaseUrls
    ) -> None:
        rights = asked(database_urls, RIGHTS, ENGINE)
        assert {name for name, _, _ in rights} == recorded("What the engine may touch")
        payload = {
            (each.name, column) for each in (RUNS, CALLS, APPROVALS) for column in (*each.documents, *each.texts)
        }
        payload |= {("runs", "principal"), ("runs", "limits"), ("events", "payload"), ("tenants", "terms")}
        assert payload.isdisjoint((name, column) for name, column, right in rights if right == "SELECT")


def asked(urls: DatabaseUrls, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
    """What the catalogue says."""
    with psycopg.connect(urls.admin) as conn:
        return conn.execute(query, values).fetchall()


RIGHTS = """
select c.relname, a.attname, rights.name
  from pg_class c
  join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
 cross join (values ('SELECT'), ('INSERT'), ('UPDATE')) as rights(name)
 where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
   and has_column_privilege(%s, c.oid, a.attnum, rights.name)"""


class TestCatalogue:
    def test_roles_own_nothing_and_bypass_nothing(self, database_urls: DatabaseUrls) -> None:
        query = """select rolname, rolsuper or rolbypassrls or rolcreaterole or rolreplication,
                          exists (select from pg_class where relowner = r.oid)
                          or exists (select from pg_proc where proowner = r.oid),
                          array(select m.roleid::regrole::text from pg_auth_members m where m.member = r.oid)
                     from pg_roles r where rolname = any(%s) order by 1"""
        assert asked(database_urls, query, [APP, ENGINE]) == [(APP, False, False, [ENGINE]), (ENGINE, False, False, [])]

    def test_tables_without_row_level_security_are_those_of_the_decision_record(
        self, database_urls: DatabaseUrls
    ) -> None:
        query = """select c.relname, c.relrowsecurity and c.relforcerowsecurity,
                          exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id')
                     from pg_class c
                    where c.relkind in ('r', 'p', 'f', 'v', 'm') and c.relnamespace = 'public'::regnamespace"""
        found = asked(database_urls, query)
        assert {name for name, walled, _ in found if not walled} == recorded("Tables without row-level security")
        assert {name for name, walled, _ in found if walled} == {name for name, _, tenants in found if tenants}

    def test_each_policy_admits_the_sessions_tenants_and_the_engines_alone_admits_all(
        self, database_urls: DatabaseUrls
    ) -> None:
        query = """select distinct policyname, roles::text[], qual, with_check, permissive
                     from pg_policies where schemaname = 'public' order by 1"""
        sessions = (
            "(tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text)"
            " AS string_to_array)::text[]))"
        )
        assert asked(database_urls, query) == [
            ("of_the_sessions_tenants", [APP], sessions, None, "PERMISSIVE"),
            ("the_engine_sees_all", [ENGINE], "true", None, "PERMISSIVE"),
            ("the_owner_prunes", ["holdfast_owner"], sessions.replace("( SELECT ", "( SELECT "), None, "PERMISSIVE"),
        ]

    def test_functions_that_work_as_their_owner_are_those_of_the_decision_record(
        self, database_urls: DatabaseUrls
    ) -> None:
        query = """select proname, proconfig::text[], proacl::text[] from pg_proc
                    where pronamespace = 'public'::regnamespace and prosecdef"""
        found = asked(database_urls, query)
        assert {name for name, _, _ in found} == recorded("Functions that work as the owner")
        for _, settings, rights in found:
            assert settings == ["search_path=public, pg_temp"]
            assert not [right for right in rights if right.startswith("=")], "anyone may call it"


class TestInstrument:
    """What finds no leak must be able to find one."""

    def test_statement_is_written_back_as_it_was_read(self) -> None:
        trees = {name: parse_sql(numbered(query)) for name, query in named_queries().items()}
        assert [name for name, tree in trees.items() if parse_sql(written(tree)) != tree] == []

    def test_every_condition_is_taken_out(self) -> None:
        text = """
            with a as (
                select x from t join u using (i) where t.tenant_id = $1 and exists (select from v where k = $2))
            update w set x = $3
              from a left join b on b.i = a.x
             where w.i = a.x and w.tenant_id = $1
         returning w.i"""
        sent = Sent(text, ("1", "2", "3"), ("acme", 2, 3), APP, ACME, "x")
        bare, joined, lax = mutilated(sent)
        assert (bare.values, joined.values, set(lax.values)) == ((3,), (3,), {2, 3})
        assert conditions(sent) == len(bare.lacks) == 5
        assert not re.search(r"WHERE|USING|tenant|=[^$]*\.", bare.text.replace("x = $1", ""))
        assert "USING" in joined.text
        assert "WHERE" not in joined.text
        assert "tenant" not in lax.text
        assert lax.text.count("WHERE") == 3

    def test_leak_is_named_in_every_table_that_has_no_wall(self, told: Told, trial: Court) -> None:
        unseen = []
        for name in trial.tables:
            trial.leaks.clear()
            with trial.without_wall(name):
                for sent in told.of(role=APP, tenants=ACME):
                    if name in relations(sent.text) and not trial.leaks:
                        trial.tried(sent, mutilated(sent)[0], ACME)
            unseen += [] if trial.leaks else [name]
        assert unseen == []
