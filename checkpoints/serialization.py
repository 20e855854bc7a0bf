"""What a stored checkpoint may become when it is read: plain data, LangGraph's own types and those a graph declares."""

from collections.abc import Set
from typing import Any

from langgraph._internal._serde import build_serde_allowlist
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel

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
