"""What Postgres does for the table of workers, and how it finds the versions that wait."""

import json

import psycopg
import pytest
from fix_database import DatabaseUrls

from holdfast.checkpoints.queries import load_queries

WORKERS = load_queries("holdfast.checkpoints.x", "workers.sql")
SEEDED = """
with tenant as (
    insert into tenants (tenant_id, terms, budget_id) values ('acme', '{}', gen_random_uuid())),
made as (
    insert into threads (thread_id, tenant_id, thread_key)
    select gen_random_uuid(), 'acme', n::text from generate_series(1, 20000) as n
 returning thread_id, thread_key)
insert into runs (run_id, tenant_id, thread_id, graph_name, graph_version, status, principal, input, input_type,
                  request_digest, limits, max_attempts)
select gen_random_uuid(), 'acme', thread_id, case when thread_key::int % 10 = 0 then 'shop' else 'desk' end,
       '2.' || thread_key::int % 4, 'queued', '{}', '', 'json', '', '{}', 5
  from made
"""


def test_only_the_engine_knows_of_workers(database_urls: DatabaseUrls) -> None:
    with (
        psycopg.connect(database_urls.app, autocommit=True) as conn,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        conn.execute("select * from workers")
    with psycopg.connect(database_urls.app, autocommit=True, options="-c role=holdfast_engine") as conn:
        assert conn.execute("select * from workers").fetchall() == []


def test_the_versions_that_wait_are_found_in_a_step_each_however_long_the_queue_is(database_urls: DatabaseUrls) -> None:
    with psycopg.connect(database_urls.admin, autocommit=True) as conn:
        conn.execute(SEEDED)
        conn.execute("analyze runs")
    with psycopg.connect(database_urls.app, autocommit=True, options="-c role=holdfast_engine") as conn:
        asked = {"names": ["desk", "none", "shop"]}
        found = conn.execute(WORKERS["claimable_versions"].encode(), asked).fetchall()
        assert sorted(found) == [*(("desk", f"2.{n}") for n in range(4)), ("shop", "2.0"), ("shop", "2.2")]
        explained = conn.execute(
            b"explain (analyze, format json) " + WORKERS["claimable_versions"].encode(), asked
        ).fetchone()
    assert explained is not None
    scans = [node for node in _nodes(explained[0][0]["Plan"]) if node.get("Relation Name") == "runs"]
    assert {node["Index Name"] for node in scans} == {"open_versions"}, json.dumps(scans)
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in scans) <= 10


def _nodes(plan):
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)
