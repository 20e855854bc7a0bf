"""How long a run waits for another worker after its own was killed.

Two worker processes, of which the one that has the run is killed with SIGKILL in the middle of a node. What is measured
is the time, by the database's clock, from the end of the dead worker's lease to the next claim: what is added to the
lease. From the kill itself it is up to a lease more, less what had passed since the last heartbeat.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import psycopg
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from benchmarks.measuring import quantile, table
from benchmarks.servers import durable_server, our_database
from holdfast import govern, open_runtime
from holdfast.contracts.tenancy import Tenant
from holdfast.server.settings import Settings, load_settings

_LONGEST_SECONDS = 120.0


class State(TypedDict, total=False):
    seen: str


async def hangs(state: State) -> None:
    await asyncio.Event().wait()


def graph() -> Any:
    builder = StateGraph(State).add_node("hangs", hangs).add_edge(START, "hangs")
    return govern(builder.compile(), name="hanging", version="1")


def settings(url: str, ttl: float) -> Settings:
    worker = {"lease_ttl_seconds": ttl, "poll_seconds": 30.0, "slots": 1}
    return load_settings(DATABASE_URL=url, tenants=[Tenant(tenant_id="bench")], worker=worker)


async def work(url: str, ttl: float) -> None:
    """A worker, in a process of its own, until it is killed."""
    async with open_runtime(settings(url, ttl), graphs=[graph()]):
        print("working", flush=True)
        await asyncio.Event().wait()


@contextmanager
def worker(url: str, ttl: float) -> Iterator["subprocess.Popen[str]"]:
    command = f"import asyncio; from benchmarks.takeover import work; asyncio.run(work({url!r}, {ttl!r}))"
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "working"
        yield process
    finally:
        process.kill()
        process.communicate()


def one(conn: "psycopg.Connection[Any]", query: str, run_id: str) -> Any:
    return conn.execute(query.encode(), [run_id]).fetchone()


async def until(conn: "psycopg.Connection[Any]", query: str, run_id: str) -> Any:
    async with asyncio.timeout(_LONGEST_SECONDS):
        while (found := one(conn, query, run_id)) is None:  # noqa: ASYNC110  # only the database knows
            await asyncio.sleep(0.05)
    return found


async def kill_once(url: str, admin_url: str, ttl: float) -> tuple[float, float]:
    """Milliseconds from the end of the lease, and from the kill, to the claim of the other worker."""
    with worker(url, ttl) as first, psycopg.connect(admin_url, autocommit=True) as conn:
        async with open_runtime(settings(url, ttl), serve=False) as runtime:
            run = await runtime.start(graph(), {}, tenant="bench")
            began = "select 1 from events where run_id = %s and kind = 'node.started'"
            await until(conn, began, run.id)
            with worker(url, ttl):
                os.kill(first.pid, signal.SIGKILL)
                first.wait()
                killed, lease_end = one(
                    conn, "select clock_timestamp(), expires_at from leases where run_id = %s", run.id
                )
                taken = "select claimed_at from runs where run_id = %s and epoch = 2"
                (claimed,) = await until(conn, taken, run.id)
            conn.execute("delete from leases")
            conn.execute("update runs set status = 'queued', graph_version = 'done'")
    return (claimed - lease_end).total_seconds() * 1000, (claimed - killed).total_seconds() * 1000


async def bench(rounds: int, ttls: Sequence[float]) -> str:
    found: dict[float, list[tuple[float, float]]] = {ttl: [] for ttl in ttls}
    async with durable_server() as server:
        for _ in range(rounds):
            for ttl in ttls:
                found[ttl].append(await kill_once(server.app_url, our_database(server), ttl))
    return table(
        ["lease, s", "kills", "after its end: median, ms", "worst, ms", "after the kill: median, s"],
        [
            [
                f"{ttl:g}",
                str(len(pairs)),
                f"**{median(late for late, _ in pairs):.0f}**",
                f"{quantile([late for late, _ in pairs], 1.0):.0f}",
                f"{median(waited for _, waited in pairs) / 1000:.1f}",
            ]
            for ttl, pairs in found.items()
        ],
    )
