"""Who is there to work, on Postgres: a row for each worker, which it renews and which nobody needs for long."""

from collections.abc import Sequence
from typing import Any

from psycopg.types.json import Jsonb

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.queries import load_queries
from holdfast.contracts.runs import GraphVersion
from holdfast.contracts.workers import LiveWorker, ServedGraph, WantedVersion

_SQL = load_queries(__name__, "workers.sql")


class PostgresWorkers:
    """`contracts.ports.Workers` on Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def announce(self, worker_id: str, serves: Sequence[ServedGraph], *, ttl_seconds: float) -> None:
        served = [
            {"name": graph.name, "version": graph.version, "compatible": list(graph.compatible)} for graph in serves
        ]
        notice = {"worker_id": worker_id, "serves": Jsonb(served), "ttl_seconds": ttl_seconds}
        async with self._database.engine() as conn:
            await conn.execute(_SQL["announce_worker"], notice)

    async def leave(self, worker_id: str) -> None:
        async with self._database.engine() as conn:
            await conn.execute(_SQL["forget_worker"], {"worker_id": worker_id})

    async def alive(self) -> Sequence[LiveWorker]:
        async with self._database.engine() as conn:
            found = await conn.execute(_SQL["live_workers"])
            return [
                LiveWorker(worker_id=row["worker_id"], serves=_served(row["serves"]), since=row["since"])
                for row in await found.fetchall()
            ]

    async def wanted(self) -> Sequence[WantedVersion]:
        async with self._database.engine() as conn:
            found = await conn.execute(_SQL["wanted_versions"])
            return [
                WantedVersion(
                    name=row["graph_name"],
                    version=row["graph_version"],
                    queued=row["queued"],
                    running=row["running"],
                    interrupted=row["interrupted"],
                    oldest_at=row["oldest_at"],
                )
                for row in await found.fetchall()
            ]

    async def claimable(self, names: Sequence[str]) -> Sequence[GraphVersion]:
        async with self._database.engine() as conn:
            found = await conn.execute(_SQL["claimable_versions"], {"names": list(names)})
            return [GraphVersion(row["graph_name"], row["graph_version"]) for row in await found.fetchall()]


def _served(graphs: Sequence[dict[str, Any]]) -> tuple[ServedGraph, ...]:
    return tuple(
        ServedGraph(name=graph["name"], version=graph["version"], compatible=tuple(graph["compatible"]))
        for graph in graphs
    )
