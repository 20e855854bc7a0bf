"""LangGraph's Postgres saver over our pool: one instance for each run, bound to the run's tenant.

The stock saver holds one lock for all runs of a process while it waits for the database; ours takes a connection for
each use. It is not fenced yet: two workers on one thread are kept apart by the lease alone.
"""

from collections.abc import AsyncIterator, Sequence, Set
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph._internal._serde import build_serde_allowlist
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel
from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from holdfast.checkpoints.database import Database
from holdfast.contracts.classification import translated
from holdfast.contracts.ids import TenantId
from holdfast.contracts.runs import Owner

TypeNames = Set[tuple[str, ...]]
"""Classes as (module, name)."""


def strict_serializer(types: TypeNames = frozenset()) -> JsonPlusSerializer:
    """A serializer that reads plain values, messages, LangGraph's own types and `types`, and nothing else.

    LangGraph's default imports and calls whatever a stored checkpoint names; what is not allowed here comes back as
    the plain data it was made of.
    """
    return JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=tuple(types) or None)


def declared_types(graph: Pregel[Any, Any, Any, Any]) -> TypeNames:
    """The classes that a compiled graph, or a graph in it, declares in its state, input, output and nodes.

    LangGraph collects them itself only when `LANGGRAPH_STRICT_MSGPACK` is set before it is imported.
    """
    names = build_serde_allowlist(schemas=_schemas(graph), channels=graph.channels)
    for _, subgraph in graph.get_subgraphs(recurse=True):
        if isinstance(subgraph, Pregel):
            names |= build_serde_allowlist(schemas=_schemas(subgraph), channels=subgraph.channels)
    return names


def saver_for(database: Database, owner: Owner) -> "TenantSaver":
    """The saver of a run, to be called in the loop that runs it. Give it the graph's own types by
    `.with_allowlist(declared_types(graph))`."""
    return TenantSaver(database, owner.tenant_id)


class TenantSaver(AsyncPostgresSaver):
    """Checkpoints of one tenant. Raises our errors (`StoreUnavailable`), never psycopg's."""

    def __init__(self, database: Database, tenant_id: TenantId) -> None:
        # The base class uses its connection in `_cursor` alone, which is ours.
        super().__init__(conn=None, serde=strict_serializer())  # type: ignore[arg-type]
        self._database = database
        self._tenant_id = tenant_id

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        # LangGraph keeps a node's exception by its text, which may quote a key; as one of ours it does not.
        told = [(channel, translated(value) if channel == ERROR else value) for channel, value in writes]
        await super().aput_writes(config, told, task_id, task_path)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        # The base class yields inside its cursor, and would keep our transaction open at the reader's leisure.
        for found in [each async for each in super().alist(config, filter=filter, before=before, limit=limit)]:
            yield found

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        async with (
            self._database.tenant(self._tenant_id) as conn,
            conn.cursor(binary=True, row_factory=dict_row) as cursor,
        ):
            if pipeline:
                async with conn.pipeline():
                    yield cursor
            else:
                yield cursor


def _schemas(graph: Pregel[Any, Any, Any, Any]) -> list[type[Any]]:
    builder = getattr(graph, "builder", None)
    if not isinstance(builder, StateGraph):
        return []
    branches = (branch for group in builder.branches.values() for branch in group.values())
    found = [
        builder.state_schema,
        builder.input_schema,
        builder.output_schema,
        *(node.input_schema for node in builder.nodes.values()),
        *(branch.input_schema for branch in branches),
    ]
    return [schema for schema in found if schema is not None]
