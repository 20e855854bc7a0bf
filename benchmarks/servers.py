"""Where savers are measured: one server that keeps what it commits, with a database for each side."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from holdfast.checkpoints.embedded import EmbeddedServer, embedded_server
from holdfast.contracts.ids import RunId, TenantId, ThreadId
from holdfast.contracts.runs import Owner

TENANTS = 4


@asynccontextmanager
async def durable_server() -> AsyncIterator[EmbeddedServer]:
    """A server of its own with fsync on. Those that the embedded module calls temporary have it off."""
    with _reachable_folder() as folder:
        async with embedded_server(folder / "server") as server:
            yield server


@contextmanager
def _reachable_folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="holdfast-benchmark-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres may run as another user
        yield folder


async def langgraphs_database(server: EmbeddedServer) -> str:
    """The address of an empty database for LangGraph's own saver, whose login may do everything."""
    async with await psycopg.AsyncConnection.connect(server.admin_url, autocommit=True) as conn:
        await conn.execute("create database langgraphs_own")
    return make_conninfo(server.admin_url, dbname="langgraphs_own")


def our_database(server: EmbeddedServer) -> str:
    """The address of our database for its superuser."""
    return make_conninfo(server.admin_url, dbname=conninfo_to_dict(server.app_url)["dbname"])


async def held_runs(server: EmbeddedServer, count: int) -> Iterator[Owner]:
    """Owners of runs that are claimed already: what claiming costs is measured elsewhere."""
    runs = [str(uuid4()) for _ in range(count)]
    tenants = [f"tenant{n % TENANTS}" for n in range(count)]
    async with await psycopg.AsyncConnection.connect(our_database(server)) as conn:
        await conn.execute(
            "insert into tenants (tenant_id, terms, budget_id) select distinct t, '{}'::jsonb, md5(t)::uuid "
            "from unnest(%s::text[]) t on conflict do nothing",
            [tenants],
        )
        await conn.execute(
            "insert into threads (thread_id, tenant_id, thread_key) "
            "select r, t, r::text from unnest(%s::uuid[], %s::text[]) u(r, t)",
            [runs, tenants],
        )
        await conn.execute(
            "insert into runs (run_id, tenant_id, thread_id, graph_name, graph_version, status, principal, input, "
            "input_type, request_digest, limits, max_attempts, epoch) "
            "select r, t, r, 'g', '1', 'running', '{}', '', 'json', '', '{}', 1, 1 "
            "from unnest(%s::uuid[], %s::text[]) u(r, t)",
            [runs, tenants],
        )
        await conn.execute(
            "insert into leases (run_id, tenant_id, epoch, worker_id, expires_at) "
            "select r, t, 1, 'w', clock_timestamp() + interval '1 hour' from unnest(%s::uuid[], %s::text[]) u(r, t)",
            [runs, tenants],
        )
    return (
        Owner(tenant_id=TenantId(t), run_id=RunId(r), thread_id=ThreadId(r), epoch=1, attempt=1, worker_id="w")
        for r, t in zip(runs, tenants, strict=True)
    )
