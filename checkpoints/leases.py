"""Who works on what, on Postgres. Every time is the database's own."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.events import Entry, write_entries
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.runs import load_runs
from holdfast.contracts.errors import Conflict
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.runs import GraphVersion, RunClaim

_SQL = load_queries(__name__, "leases.sql")


class PostgresLeases:
    """`contracts.ports.Leases` on Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(
        self,
        worker_id: str,
        *,
        tenants: Sequence[TenantId] | None,
        graphs: Mapping[GraphVersion, str],
        slots: int,
        ttl_seconds: float,
    ) -> Sequence[RunClaim]:
        wanted = {
            "worker_id": worker_id,
            "tenants": None if tenants is None else list(tenants),
            "graphs": [graph.name for graph in graphs],
            "versions": [graph.version for graph in graphs],
            "slots": slots,
            "ttl_seconds": ttl_seconds,
        }
        try:
            claimed = await self._claim(wanted, graphs)
        except Conflict:
            # Another worker took a run of one of these threads in this very moment, which the index of one running
            # run per thread found. Nothing is claimed; the next poll sees whose turn it is.
            return ()
        return await self._hydrate(worker_id, claimed)

    async def disown(self, worker_id: str, *, held: Collection[RunId]) -> None:
        async with self._database.engine() as conn:
            await conn.execute(_SQL["disown_leases"], {"worker_id": worker_id, "held": list(held)})

    async def seconds_to_next_expiry(self) -> float | None:
        async with self._database.engine() as conn:
            row = await (await conn.execute(_SQL["next_expiry"])).fetchone()
        return None if row is None else row["seconds"]

    async def _claim(
        self, wanted: Mapping[str, Any], graphs: Mapping[GraphVersion, str]
    ) -> Mapping[RunId, dict[str, Any]]:
        async with self._database.engine() as conn:
            rows = await (await conn.execute(_SQL["claim_runs"], wanted)).fetchall()
            for row in rows:
                row["served_by"] = graphs[GraphVersion(row["graph_name"], row["graph_version"])]
            await write_entries(conn, [_claimed(wanted["worker_id"], row) for row in rows])
        return {RunId(row["run_id"]): row for row in rows}

    async def _hydrate(self, worker_id: str, claimed: Mapping[RunId, dict[str, Any]]) -> Sequence[RunClaim]:
        """The claims with their runs, which only the application's role may read."""
        if not claimed:
            return ()
        async with self._database.tenants(sorted({row["tenant_id"] for row in claimed.values()})) as conn:
            runs = await load_runs(conn, list(claimed))
        # One that was taken over between the two transactions has another epoch by now: it is not ours to show.
        return [
            RunClaim(
                run_id=run.run_id,
                worker_id=worker_id,
                claimed_until=claimed[run.run_id]["expires_at"],
                heartbeat_at=claimed[run.run_id]["heartbeat_at"],
                run=run,
                served_by=claimed[run.run_id]["served_by"],
            )
            for run in runs
            if run.epoch == claimed[run.run_id]["epoch"]
        ]


def _claimed(worker_id: str, row: Mapping[str, Any]) -> Entry:
    facts = {
        "worker_id": worker_id,
        "epoch": row["epoch"],
        "attempt": row["attempt"],
        "graph_version": row["served_by"],
    }
    return Entry(
        tenant_id=row["tenant_id"],
        run_id=row["run_id"],
        attempt=row["attempt"],
        draft=EventDraft(kind=EventKind.RUN_CLAIMED, payload=facts),
    )
