"""Which classes of its author's a graph may find in its state again: those its own code names or holds, and that are
data.

A node may put any value into a channel, whatever the schemas say: LangGraph stores the name of its class and makes one
anew when the value is read. What we read are rows that anyone may have written. So we make only what this graph can
have put there, and never what acts (a client, a model, a prompt), nor what Pydantic would make such a thing for.
"""

import dataclasses
import inspect
import sys
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from decimal import Decimal
from enum import Enum
from types import FunctionType
from typing import Any
from uuid import UUID

from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, register_serde_event_listener
from pydantic import BaseModel
from pydantic.errors import PydanticUserError
from pydantic.v1 import BaseModel as OldBaseModel

from holdfast.contracts.errors import InvalidRequest
from holdfast.graphs.signature import Compiled, Reader
from holdfast.graphs.source import Unread, names_in
from holdfast.telemetry.logs import logger

log = logger(__name__)

StoredTypes = frozenset[tuple[str, str]]
"""Classes as (module, name)."""

_VALUES = (BaseModel, Enum, Decimal, UUID, set, frozenset, deque)
"""What LangGraph stores the subclasses of by name; dataclasses and named tuples besides."""
_INERT = frozenset(
    {"abc", "builtins", "collections", "decimal", "enum", "pydantic", "typing", "typing_extensions", "uuid"}
)
"""The packages whose classes do nothing when they are made, so that data may inherit from them."""
_MADE = frozenset({"model", "dataclass"})
"""What Pydantic's schemas call classes of which it makes one."""
_MOST_TOLD = 1000
_IMPORTING = frozenset({"pydantic._internal._validators.import_string"})
"""What Pydantic calls for an `ImportString`: a stored name would be imported."""


def stored_types(
    graph: Compiled, tools: Iterable[Any], types: Iterable[type], *, body_of: Callable[[Any], Any]
) -> StoredTypes:
    """`types`, and the classes of data of the project's own that these, a graph and its tools reach: by names in code,
    by annotations, by what closures and objects hold. `body_of` is as for a signature."""
    given = frozenset(types)
    reader = _Collector(graph, tools, given, body_of=body_of, sources=Unread)
    reader.result()
    own = (thing for thing in reader.met if isinstance(thing, type) and reader.project.owns(thing.__module__))
    data = {cls for cls in own if _is_value(cls) and _is_found(cls) and reader.only_holds(cls, given)}
    return frozenset(map(_name_of, given | data))


def require_data(cls: Any) -> None:
    """Raise `InvalidRequest` unless values of a class can be made of what is stored of them."""
    if not isinstance(cls, type) or not (_is_value(cls) or issubclass(cls, OldBaseModel)):
        raise InvalidRequest(
            f"types=[…] takes classes of data (Pydantic models, dataclasses, enums, named tuples), not {cls!r}"
        )
    if not _is_found(cls):
        raise InvalidRequest(
            f"types=[…]: a stored {cls.__qualname__} cannot be made again, for LangGraph looks for it as "
            f"{cls.__name__} at the top level of {cls.__module__}. Define it there"
        )


@contextmanager
def told_of_what_stays_plain() -> Iterator[None]:
    """Logs each class, once, of which a stored value comes back as plain data, and what to do. LangGraph says it too,
    in words of its serializer's that nobody here can act on."""
    told: set[tuple[str, str]] = set()

    def tell(event: SerdeEvent) -> None:
        stored = event["module"], event["name"]
        if event["kind"] == "msgpack_blocked" and stored not in told and len(told) < _MOST_TOLD:
            told.add(stored)
            log.warning(
                "plain_data",
                module=stored[0],
                name=stored[1],
                what="a stored value of this class comes back as plain data, for its graph was not seen to reach it",
                action=f"declare it where it is meant to be in a state: govern(…, types=[{stored[1]}])",
            )

    forget = register_serde_event_listener(tell)
    try:
        yield
    finally:
        forget()


class _Collector(Reader):
    """A reader that follows annotations as well. It leaves files unread, and its digest counts for nothing."""

    def only_holds(self, cls: type, declared: Set[type]) -> bool:
        """Whether neither a class nor what is made with it acts: nothing in them is an installed package's but what is
        read of everybody's: messages, documents."""
        schema = _schema_of(cls)
        if schema is None:
            return False
        made, called = _made_by(schema)
        return not called & _IMPORTING and all(each in declared or self._is_data(each) for each in {cls, *made})

    def _is_data(self, cls: type) -> bool:
        read_anyway = {kind for base in cls.__mro__ if _name_of(base) in SAFE_MSGPACK_TYPES for kind in base.__mro__}
        return all(
            base in read_anyway or self.project.owns(base.__module__) or base.__module__.partition(".")[0] in _INERT
            for base in cls.__mro__
        )

    def _describe(self, thing: Any) -> None:
        try:
            super()._describe(thing)
            self._annotations(thing)
        except RecursionError:
            return  # a value without end; what else names a class is read

    def _annotations(self, thing: Any) -> None:
        if not isinstance(thing, (type, FunctionType)) or not self.project.owns(str(thing.__module__)):
            return
        try:
            said = inspect.get_annotations(thing)
        except (NameError, ValueError):  # they are evaluated when asked for, and of what is not there; or are none
            return
        module = thing.__globals__ if isinstance(thing, FunctionType) else _module(thing.__module__)
        for each in said.values():
            self._annotation(each, module)

    def _annotation(self, said: Any, module: Mapping[str, Any]) -> None:
        """What an annotation names, in quotes or not."""
        if isinstance(said, typing.ForwardRef):
            said = said.__forward_arg__
        origin, given = typing.get_origin(said), typing.get_args(said)
        if isinstance(said, str):
            self._globals(module, _names_said(said))
        elif origin is None:
            self.read(said)
        elif origin is not typing.Literal:  # whose texts name nothing
            for each in (origin, *(given[:1] if origin is typing.Annotated else given)):
                self._annotation(each, module)


def _names_said(text: str) -> frozenset[str]:
    try:
        return names_in(compile(text, "<annotation>", "eval", dont_inherit=True))
    except (SyntaxError, ValueError):  # some other text
        return frozenset()


def _name_of(cls: type) -> tuple[str, str]:
    """What LangGraph stores of a value's class."""
    return cls.__module__, cls.__name__


def _is_value(cls: type) -> bool:
    named_tuple = issubclass(cls, tuple) and hasattr(cls, "_fields")
    return issubclass(cls, _VALUES) or dataclasses.is_dataclass(cls) or named_tuple


def _schema_of(cls: type) -> Mapping[str, Any] | None:
    """By what Pydantic makes values of a class; nothing for other classes, None if it cannot be told."""
    if not hasattr(cls, "__pydantic_core_schema__"):
        return {}
    if issubclass(cls, BaseModel):
        try:  # a model that names what came after it is completed when it is first used
            cls.model_rebuild(raise_errors=False, _types_namespace={})
        except PydanticUserError:
            return None
    schema = cls.__pydantic_core_schema__
    return schema if isinstance(schema, dict) else None


def _made_by(schema: Mapping[str, Any]) -> tuple[Set[type], Set[str]]:
    """The classes that Pydantic makes of what it is given for fields, and the functions that it calls with it."""
    made: set[type] = set()
    called: set[str] = set()
    waiting: list[Any] = [schema]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, dict):
            kind, cls, function = part.get("type"), part.get("cls"), part.get("function")
            if isinstance(kind, str) and kind in _MADE and isinstance(cls, type):
                made.add(cls)
            if callable(function):
                called.add(".".join(getattr(function, name, "") for name in ("__module__", "__qualname__")))
            waiting += part.values()
        elif isinstance(part, (list, tuple)):
            waiting += part
    return made, called


def _is_found(cls: type) -> bool:
    """Whether LangGraph finds this class, and no other, where its values say that it stands."""
    return _module(cls.__module__).get(cls.__name__) is cls


def _module(name: str) -> Mapping[str, Any]:
    found = sys.modules.get(name)
    return {} if found is None else vars(found)
