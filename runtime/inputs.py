"""What is checked before a run is admitted: its input and context against the graph, and their size."""

import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from langgraph.channels.last_value import LastValue
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.pregel import Pregel
from pydantic import BaseModel, TypeAdapter, ValidationError

from holdfast.contracts.canonical import canonical, plain
from holdfast.contracts.errors import InvalidRequest, TooLarge

_serializer = JsonPlusSerializer(pickle_fallback=False)


def checked_input(graph: Pregel[Any, Any, Any, Any], value: Any, *, max_bytes: int) -> tuple[str, bytes]:
    """`value` as (type, bytes) for the store, once it fits the graph's input schema and the size limit.

    Raises `InvalidRequest` naming the field, or `TooLarge`.
    """
    _check_fields(graph, value)
    return _within(stored(value), max_bytes)


def _within(written: tuple[str, bytes], max_bytes: int) -> tuple[str, bytes]:
    kind, data = written
    if len(data) > max_bytes:
        raise TooLarge(
            f"the input has {len(data)} bytes; the limit is {max_bytes} (HOLDFAST_MAX_INPUT_BYTES)",
            size_bytes=len(data),
            limit_bytes=max_bytes,
        )
    return kind, data


def checked_update(
    graph: Pregel[Any, Any, Any, Any], values: Mapping[str, Any] | None, *, max_bytes: int
) -> tuple[str, bytes]:
    """An update of a graph's state as (type, bytes) for the store; None is none.

    Raises `InvalidRequest` for a field that the state has not, or a value that does not fit it, and `TooLarge`.
    """
    known = graph.stream_channels_list
    for name, value in (values or {}).items():
        if name not in known:
            raise InvalidRequest(f"the state has no field {name!r}; it has {', '.join(known)}")
        if isinstance(channel := graph.channels[name], LastValue):
            _validate(TypeAdapter(channel.typ), value, f"the state's {name!r}")
    return _within(stored(None if values is None else dict(values)), max_bytes)


def stored(value: Any) -> tuple[str, bytes]:
    """`value` as the checkpoint serializer writes it; `InvalidRequest` for what it cannot write."""
    try:
        return _serializer.dumps_typed(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the input cannot be stored: {error}") from error


def checked_context(graph: Pregel[Any, Any, Any, Any], context: Any) -> dict[str, Any] | None:
    """The context settings as plain JSON, once they fit the graph's context schema."""
    schema = graph.context_schema
    if isinstance(context, BaseModel):
        context = context.model_dump(mode="json")
    if context is None:
        return None
    if schema is None:
        raise InvalidRequest("this graph takes no context; build it with StateGraph(..., context_schema=...)")
    try:
        TypeAdapter(schema).validate_python(context)
    except ValidationError as error:
        raise InvalidRequest(f"the context does not fit {schema.__name__}: {_first(error)}") from error
    result = plain(context)
    if not isinstance(result, dict):
        raise InvalidRequest("the context must be a mapping of settings")
    canonical(result)
    return result


def _check_fields(graph: Pregel[Any, Any, Any, Any], value: Any) -> None:
    builder = getattr(graph, "builder", None)
    schema = getattr(builder, "input_schema", None)
    if schema is None:
        return  # a functional graph: any value is its input
    is_model = inspect.isclass(schema) and issubclass(schema, BaseModel)
    if is_model and isinstance(value, schema):
        return
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"the input must be a mapping of {', '.join(_fields(schema))}; got {type(value).__name__}")
    if is_model:
        _validate(TypeAdapter(schema), dict(value), "the input")
    known = _fields(schema)
    # A state is filled by and by, and may begin empty; an input schema of its own says what must be there.
    required = getattr(schema, "__required_keys__", ()) if schema is not getattr(builder, "state_schema", None) else ()
    if missing := [name for name in known if name in required and name not in value]:
        raise InvalidRequest(f"the input lacks {', '.join(missing)}; it takes {', '.join(known)}")
    for name, item in value.items():
        if name not in known:
            raise InvalidRequest(f"the input has no field {name!r}; it takes {', '.join(known)}")
        # A reducer (add_messages, say) accepts more forms than its type says: it is the judge of those.
        if isinstance(graph.channels.get(name), LastValue):
            _validate(TypeAdapter(known[name]), item, f"the input's {name!r}")


def _fields(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


def _validate(adapter: TypeAdapter[Any], value: Any, what: str) -> None:
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        raise InvalidRequest(f"{what} does not fit: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
