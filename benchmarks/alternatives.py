"""What our saver is measured against: LangGraph's own, and one that keeps nothing. All stand on one server."""

import gc
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.postgres.base import BasePostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from benchmarks.servers import durable_server, held_runs, langgraphs_database, our_database
from holdfast.checkpoints.database import Database
from holdfast.checkpoints.saver import saver_for
from holdfast.checkpoints.serialization import declared_types

OURS, POOL, ONE, NOTHING = (
    "holdfast",
    "AsyncPostgresSaver, pool of 20",
    "AsyncPostgresSaver, one connection",
    "nothing kept",
)
Savers = Callable[[], BaseCheckpointSaver[Any]]
"""The saver for the next run."""


@dataclass(frozen=True, slots=True)
class Alternatives:
    savers: Mapping[str, Savers]
    addresses: Mapping[str, str]
    """The database that each keeps its checkpoints in, for its superuser."""


class NoSaver(BasePostgresSaver):
    """The ceiling: what LangGraph itself takes."""

    async def aget_tuple(self, config: Any) -> None:
        return None

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        place = config["configurable"]
        return {"configurable": {**place, "checkpoint_id": checkpoint["id"]}}

    async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        return None


@asynccontextmanager
async def alternatives(graph: Any, count: int) -> AsyncIterator[Alternatives]:
    """Savers for `count` runs of `graph`, each as it is meant to be used; ours with tenants and its fence."""
    async with durable_server() as server, Database(server.app_url) as database:
        owners = await held_runs(server, count)
        address = await langgraphs_database(server)
        settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        async with (
            AsyncPostgresSaver.from_conn_string(address) as one,
            AsyncConnectionPool(address, min_size=20, max_size=20, kwargs=settings, open=False) as pool,
        ):
            await one.setup()
            pooled, nothing = AsyncPostgresSaver(pool), NoSaver()
            types = declared_types(graph)
            gc.collect()
            gc.freeze()  # as a worker does, so that no full collection falls into one side's turn
            yield Alternatives(
                {
                    OURS: lambda: saver_for(database, next(owners)).with_allowlist(types),
                    POOL: lambda: pooled,
                    ONE: lambda: one,
                    NOTHING: lambda: nothing,
                },
                {OURS: our_database(server), POOL: address, ONE: address},
            )
