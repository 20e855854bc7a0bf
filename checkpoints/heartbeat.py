"""The heartbeat on Postgres: one statement over a connection of its own, as the engine."""

from collections.abc import Mapping, Sequence

from holdfast.checkpoints.line import Line
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.translation import translating
from holdfast.contracts.ids import RunId
from holdfast.contracts.ports import Renewal
from holdfast.contracts.runs import Owner

_SQL = load_queries(__name__, "heartbeat.sql")
_NO_TENANT: frozenset[str] = frozenset()


class PostgresHeartbeat:
    """`contracts.ports.Heartbeat` on Postgres. A lost connection is healed within the line's patience."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def renew(self, worker_id: str, owners: Sequence[Owner], *, ttl_seconds: float) -> Mapping[RunId, Renewal]:
        if not owners:
            return {}
        asked = {
            "worker_id": worker_id,
            "run_ids": [owner.run_id for owner in owners],
            "epochs": [owner.epoch for owner in owners],
            "ttl_seconds": ttl_seconds,
        }
        with translating():
            found = await self._line.run(_SQL["renew_leases"], asked, tenants=_NO_TENANT)
        return {
            RunId(row["run_id"]): Renewal(held=row["held"], cancel_requested=row["cancel_requested"]) for row in found
        }

    async def close(self) -> None:
        await self._line.close()
