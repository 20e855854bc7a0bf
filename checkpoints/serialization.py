"""What a stored checkpoint may become when it is read: plain data, LangGraph's own types and those a graph declares."""

from collections.abc import Set
from typing import Any
from weakref import WeakKeyDictionary

from langgraph._internal._serde import build_serde_allowlist
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel

from holdfast.contracts.errors import PermanentDependency

TypeNames = Set[tuple[str, ...]]
"""Classes as (module, name)."""

_declared: WeakKeyDictionary[Pregel[Any, Any, Any, Any], TypeNames] = WeakKeyDictionary()


_KINDS = frozenset({"null", "empty", "bytes", "bytearray", "json", "msgpack"})
"""What LangGraph writes. Not `pickle`, which runs what it is told."""


class StrictSerializer(JsonPlusSerializer):
    """LangGraph's serializer, for rows that anyone may have written. Make it by `strict_serializer`."""

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The value. Raises `PermanentDependency` for what is none: of another kind, cut off, nested without end."""
        kind = data[0]
        if kind not in _KINDS:
            raise PermanentDependency(f"a stored value is of the kind {kind!r}, which is never read", kind=kind)
        try:
            return super().loads_typed(data)
        except Exception as error:
            raise PermanentDependency(f"a stored value cannot be read: {type(error).__name__}", kind=kind) from error

    def _reviver(self, value: dict[str, Any]) -> Any:
        # LangChain would make any object of its own of these: prompts, parsers, whatever runs. Old checkpoints hold
        # messages in this form.
        if "lc" in value and not _names_a_message(value.get("id")):
            return value
        return super()._reviver(value)


def strict_serializer(types: TypeNames = frozenset()) -> StrictSerializer:
    """A serializer that reads plain values, messages, LangGraph's own types and `types`, and nothing else.

    LangGraph's default imports and calls whatever a stored checkpoint names; what is not allowed here comes back as
    the plain data it was made of.
    """
    return StrictSerializer(pickle_fallback=False, allowed_msgpack_modules=tuple(types) or None)


def declared_types(graph: Pregel[Any, Any, Any, Any]) -> TypeNames:
    """The classes that a compiled graph, or a graph in it, declares in its state, input, output and nodes.

    LangGraph collects them itself only when `LANGGRAPH_STRICT_MSGPACK` is set before it is imported. It takes as long
    as some runs do, so they are collected once for each graph.
    """
    found = _declared.get(graph)
    if found is None:
        found = _declared[graph] = frozenset(_collected(graph))
    return found


def _collected(graph: Pregel[Any, Any, Any, Any]) -> TypeNames:
    names = build_serde_allowlist(schemas=_schemas(graph), channels=graph.channels)
    for _, subgraph in graph.get_subgraphs(recurse=True):
        if isinstance(subgraph, Pregel):
            names |= build_serde_allowlist(schemas=_schemas(subgraph), channels=subgraph.channels)
    return names


def _names_a_message(path: Any) -> bool:
    if not isinstance(path, list) or not all(isinstance(part, str) for part in path):
        return False
    return path[:1] in (["langchain"], ["langchain_core"]) and "messages" in path and "Message" in path[-1]


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
