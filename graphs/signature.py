"""A version for a graph that names none: a digest of its topology, its schemas and the code it consists of.

From the nodes, conditional edges, reducers and tools everything that is the project's own is followed: helper
functions in any of its modules, constants (prompts!), what closures and instances hold. What belongs to others
(frameworks, installed distributions, the standard library) counts by its name, and so does what has no value that is
the same everywhere: open files, clients, paths. Nothing of it is called.
"""

import functools
import inspect
import re
import sys
import types
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from hashlib import sha256
from importlib.machinery import ModuleSpec
from typing import Any
from uuid import UUID

from langchain_core.caches import BaseCache
from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.runnables import Runnable
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph._branch import BranchSpec
from langgraph.pregel import Pregel
from langgraph.pregel._read import PregelNode
from langgraph.pregel._write import ChannelWrite, ChannelWriteEntry, ChannelWriteTupleEntry
from langgraph.store.base import BaseStore
from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

from holdfast.contracts.errors import InvalidRequest
from holdfast.graphs.source import Project, Sources, is_generated, names_in

Compiled = Pregel[Any, Any, Any, Any]

MARK = "code-"
"""What a version begins with that is a signature."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
_EXACT = (Decimal, Fraction, timedelta, date, time, UUID, range, slice)
"""Values whose `repr` says all there is to know, everywhere."""
_HOLLOW = (BaseCache, BaseCallbackHandler, BaseCallbackManager, BaseCheckpointSaver, BaseStore, SecretStr, SecretBytes)
"""Parts of the frameworks that hold what has happened, not what is to happen."""
_MODELS = (BaseLanguageModel, Embeddings)
"""Their keys, addresses and clients are the machine's affair."""
_FOLLOWED = (
    *("langchain", "langgraph", "pydantic", "annotated_types"),
    *("holdfast.contracts.", "holdfast.nodes.", "holdfast.gateway.toolset"),
)
_SCHEMA = ("state_schema", "input_schema", "output_schema")
_BREAKPOINTS = ("interrupt_before_nodes", "interrupt_after_nodes")
_FACTS_OF_A_CLASS = ("__annotations__", "__dataclass_fields__", "__pydantic_fields__", "__required_keys__")
_SAID_OF_A_FIELD = (
    *("annotation", "default", "default_factory", "alias", "title", "description", "examples", "metadata"),
    *("name", "type"),
)
_WRAPPED = ("func", "args", "keywords", "__func__", "__wrapped__", "fget", "fset", "fdel", "dispatcher")
"""What the standard library's wrappers of functions call what they wrap."""
_MECHANICS = frozenset({"func_accepts", "trace", "recurse", "explode_args", "tags", "name"})
"""How LangGraph calls a function, which it finds out by itself."""
_TYPING = frozenset({"typing", "typing_extensions", "types"})
_BUILTIN = frozenset({types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType})
_NAMED = _BUILTIN | {types.FunctionType, types.ModuleType}
_NAMES = ("__qualname__", "__name__", "_name")


def signature(
    graph: Compiled, tools: Iterable[Any], types: Iterable[type] = (), *, body_of: Callable[[Any], Any]
) -> str:
    """The version of a graph that calls `tools` by name and may hold `types` in its state. It is the same in every
    process, on every machine, wherever the project stands; it begins with `MARK`, so that no range of version numbers
    holds it.

    `body_of` gives a node's body as it was written, whoever wraps it. Raises `InvalidRequest` for values without end.
    """
    reader = Reader(graph, tools, types, body_of=body_of)
    try:
        return f"{MARK}{reader.result()[:16]}"
    except RecursionError as error:
        raise InvalidRequest(
            f"graph {graph.name!r} holds values too deeply nested to be read; name its version: govern(…, version=…)"
        ) from error


class Reader:
    """Reads a graph, its tools and its types into one digest. Functions, classes, graphs and objects are numbered
    when they are met and read in turn, so that neither cycles nor long chains matter."""

    def __init__(
        self,
        graph: Compiled,
        tools: Iterable[Any],
        types: Iterable[type] = (),
        *,
        body_of: Callable[[Any], Any],
        sources: type[Sources] = Sources,
    ) -> None:
        given = list(tools)
        self.project = Project(_modules_of(graph, given, body_of))  # types may well be others'
        self._first = (graph, [*given, *types])
        self._body_of = body_of
        self._sources = sources()
        self._said = sha256()
        self._numbers: dict[int, int] = {}
        self.met: list[Any] = []  # so that no id is used again meanwhile
        self._waiting: deque[Any] = deque()
        self._modules: set[str] = set()
        self._open: set[int] = set()

    def result(self) -> str:
        """The digest of everything that is met."""
        graph, given = self._first
        self.refer(graph)
        self.read(given)
        while self._waiting:
            self._describe(self._waiting.popleft())
        return self._said.hexdigest()

    def say(self, *words: str) -> None:
        for word in words:
            data = word.encode("utf-8", "surrogatepass")
            self._said.update(b"%d:%b" % (len(data), data))

    def refer(self, thing: Any) -> None:
        """Say which thing this is, and have it read once."""
        if id(thing) not in self._numbers:
            self._numbers[id(thing)] = len(self._numbers)
            self.met.append(thing)
            self._waiting.append(thing)
        self.say("thing", str(self._numbers[id(thing)]))

    def read(self, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN:
            self.say(kind.__name__, self._everywhere(value))
        elif issubclass(kind, Enum):
            self.refer(kind)
            self.say(_label(value))
        elif issubclass(kind, _EXACT):
            self.say(kind.__name__, repr(value))
        elif kind is re.Pattern:
            self.say("pattern", repr(value.pattern), str(value.flags))
        elif issubclass(kind, (str, bytes, int, float)):
            self._base(value, next(base for base in (str, bytes, int, float) if issubclass(kind, base)))
        elif issubclass(kind, (tuple, list, deque, dict, types.MappingProxyType, set, frozenset)):
            self._container(value)
        elif typing.get_origin(value) is not None:
            self._parametrized(typing.get_origin(value), typing.get_args(value))
        elif kind.__module__ in _TYPING and not issubclass(kind, type):
            self.say(_label(value))
        else:
            self.refer(value)

    def _parametrized(self, origin: Any, given: tuple[Any, ...]) -> None:
        """A type with its parameters; with `Annotated`, its reducer too."""
        if getattr(origin, "__module__", "") in _TYPING:  # a class in one version of Python, an object in another
            self.say("type", str(getattr(origin, "__name__", None) or getattr(origin, "_name", "")))
        else:
            self.read(origin)
        self._each(given)

    def _base(self, value: Any, base: type) -> None:
        self.refer(type(value))
        self.read(base(base.__str__(value)) if base is str else base.__new__(base, value))

    def _container(self, value: Any) -> None:
        if id(value) in self._open:
            self.say("again")
            return
        self._open.add(id(value))
        kind = type(value)
        self.refer(kind) if self.project.owns(kind.__module__) else self.say(_others_name_of(kind))
        if issubclass(kind, (dict, types.MappingProxyType)):
            self._pairs((_label(key), key, item) for key, item in _items_of(value))
        elif issubclass(kind, (set, frozenset)):
            self._pairs((_label(item), item, None) for item in _base_of(value, (set, frozenset)))
        else:
            self._each(_base_of(value, (tuple, list, deque)))
        self._open.discard(id(value))

    def _each(self, values: Iterable[Any]) -> None:
        items = list(values)
        self.say(str(len(items)))
        for item in items:
            self.read(item)

    def _pairs(self, pairs: Iterable[tuple[str, Any, Any]]) -> None:
        """In the order of their labels: the order in which they came may differ from process to process."""
        labelled = ((self._everywhere(label), key, item) for label, key, item in pairs)
        ordered = sorted(labelled, key=lambda pair: pair[0])
        self.say(str(len(ordered)))
        labels = [label for label, _, _ in ordered]
        for label, key, item in ordered:
            self.say(label)
            if labels.count(label) == 1:
                self.read(key)
                self.read(item)

    def _everywhere(self, value: Any) -> str:
        """A plain value in words, without the folder that the project happens to stand in."""
        if not isinstance(value, str):
            return hex(value) if type(value) is int else repr(value)  # no integer is too long for hex
        text = value
        for folder in self.project.folders:
            text = text.replace(folder, "<project>")
        return text

    def _describe(self, thing: Any) -> None:
        kind = type(thing)
        if issubclass(kind, Pregel):
            self._graph(thing)
        elif kind is types.FunctionType:
            self._function(thing)
        elif issubclass(kind, type):
            self._class(thing)
        elif kind is types.MethodType:
            self.say("method")
            self._each((thing.__func__, thing.__self__))
        elif kind is types.ModuleType:
            self.say("module", thing.__name__)
        elif kind in _BUILTIN:
            self.say("builtin", _label(thing))
        elif kind is ModuleSpec:
            self._unimported(thing)
        else:
            self._object(thing)

    def _function(self, function: types.FunctionType) -> None:
        code, module = function.__code__, function.__globals__
        name = str(module.get("__name__", ""))
        cells = zip(code.co_freevars, function.__closure__ or (), strict=False)
        if not self.project.owns(name):
            # Its code is others' affair, what it was given is not.
            self.say("function", f"{name.partition('.')[0]}.{code.co_qualname}")
        else:
            text = self._sources.function(code, module)
            self.say("function", code.co_qualname, text.digest)
            self.read(function.__dict__)
            self._globals(module, names_in(code))
            for imported in text.imports:
                self._import(imported)
        self._each((function.__defaults__, function.__kwdefaults__))
        for variable, cell in cells:
            self.say(variable)
            self.read(_content_of(cell))

    def _globals(self, module: Mapping[str, Any], names: frozenset[str]) -> None:
        """What the names that a function uses stand for in its module, and in its project's modules by a dot."""
        seen: set[int] = set()
        following = [module]
        while following:
            each = following.pop()
            for name in sorted(names & each.keys()):
                value = each[name]
                self.say(name)
                if type(value) is not types.ModuleType:
                    self.read(value)
                elif not self.project.owns(value.__name__):
                    self.say("module", value.__name__)
                elif id(value) not in seen:
                    seen.add(id(value))
                    following.append(vars(value))

    def _import(self, module: str) -> None:
        """A module that a function imports when it runs counts whole, since it may not be there yet."""
        if module not in self._modules and (spec := self.project.found(module)) is not None:
            self._modules.add(module)
            self.refer(spec)

    def _unimported(self, spec: ModuleSpec) -> None:
        whole = self._sources.module(spec)
        self.say("module", spec.name, whole.digest if whole is not None else "")
        for imported in whole.imports if whole is not None else ():
            self._import(imported)

    def _class(self, cls: type) -> None:
        own = self.project.owns(cls.__module__)
        self.say("class", _name_of(cls) if own else _others_name_of(cls))
        if not own and not _is_made_up(cls):
            return
        members = dict(vars(cls))
        self.say(_doc_of(cls, members))
        self._each(members.get("__orig_bases__", cls.__bases__))
        for facts in _FACTS_OF_A_CLASS:
            self.say(facts)
            self.read(members.get(facts))
        if own:
            self._members(cls, members)

    def _members(self, cls: type, members: dict[str, Any]) -> None:
        if issubclass(cls, Enum):
            for name, member in members.pop("_member_map_", {}).items():
                members.pop(name, None)
                self.say(name)
                self.read(member._value_)
            members = {name: member for name, member in members.items() if not name.startswith("_")}
        for name in sorted(members):
            if not name.startswith("__") or self._is_written(members[name]):
                self.say(name)
                self.read(members[name])

    def _is_written(self, member: Any) -> bool:
        """Whether a special method is its author's, and not a dataclass's or Pydantic's."""
        function = member.__func__ if type(member) in {classmethod, staticmethod} else member
        return (
            type(function) is types.FunctionType
            and self.project.owns(str(function.__globals__.get("__name__", "")))
            and not is_generated(function.__code__)
        )

    def _object(self, thing: Any) -> None:
        kind = type(thing)
        self.say("object")
        self.read(kind)
        for name, value in sorted(self._attributes(thing, kind)):
            self.say(name)
            self.read(value)

    def _attributes(self, thing: Any, kind: type) -> list[tuple[str, Any]]:
        """What an object holds that is its author's word, and the same everywhere."""
        held = _held(thing)
        names: Iterable[str] = ()
        if self.project.owns(kind.__module__):
            # What the framework's base class keeps for itself, callbacks for one, is not.
            names = held.keys() - BaseChatModel.model_fields.keys() if issubclass(kind, _MODELS) else held
        elif issubclass(kind, _MODELS):
            names = ("model", "model_name")
        elif issubclass(kind, (Field, FieldInfo)):
            names = _SAID_OF_A_FIELD
        elif issubclass(kind, BaseModel):
            names = thing.__pydantic_fields_set__
        elif kind.__module__ in {"functools", "builtins"}:
            names = _WRAPPED
        elif (kind.__module__.startswith(_FOLLOWED) and not issubclass(kind, _HOLLOW)) or kind is types.SimpleNamespace:
            names = held.keys() - _MECHANICS
        return [(name, held[name]) for name in names if name in held]

    def _graph(self, graph: Compiled) -> None:
        self.say("graph")
        for name in sorted(graph.nodes):
            self._node(name, graph.nodes[name])
        for name in sorted(graph.channels):
            channel = graph.channels[name]
            self.say("channel", name, _others_name_of(type(channel)))
            self._each(getattr(channel, fact, None) for fact in ("typ", "operator", "names", "accumulate"))
        for name in (*_BREAKPOINTS, "input_channels", "output_channels", "stream_channels"):
            self.say(name)
            self.read(getattr(graph, name, None))
        self.say("context")
        self.read(getattr(graph, "context_schema", None))
        builder = getattr(graph, "builder", None)
        for name in _SCHEMA:
            self.say(name)
            self.read(getattr(builder, name, None))
        for name, spec in sorted(getattr(builder, "nodes", {}).items()):
            self.say(name)
            self.read(spec.input_schema)

    def _node(self, name: str, node: PregelNode) -> None:
        self.say("node", name, str(node.is_error_handler), str(node.error_handler_node))
        self._each((sorted(node.triggers), node.channels))
        self.read(self._body_of(node.bound))
        self._each(below for below in node.subgraphs if isinstance(below, Pregel))
        for writer in node.writers:
            self._writer(writer)

    def _writer(self, writer: Runnable[Any, Any]) -> None:
        """An edge, a conditional edge, or what else a node does with its output."""
        if (branch := branch_of(writer)) is not None:
            self.say("branch")
            self._each((branch.path, branch.ends, branch.input_schema))
        elif isinstance(writer, ChannelWrite):
            for entry in writer.writes:
                self._entry(entry)
        else:
            self.read(writer)

    def _entry(self, entry: Any) -> None:
        match entry:
            case ChannelWriteEntry():
                self.say("write", entry.channel)
                self.read(entry.mapper)
            case ChannelWriteTupleEntry():  # LangGraph's own way to spread what a node returns; and where it may go
                self.say("writes")
                self.read(entry.static)
            case _:
                self.say("send", _label(entry))


def branch_of(writer: Runnable[Any, Any]) -> BranchSpec | None:
    """The conditional edge behind a writer, governed or not."""
    owner = getattr(getattr(writer, "afunc", None), "__self__", None)
    spec = getattr(owner, "spec", owner)
    return spec if isinstance(spec, BranchSpec) else None


def _held(thing: Any) -> dict[str, Any]:
    """What an object holds, by name, without asking it: neither properties nor `__getattr__` are called."""
    held: dict[str, Any] = {}
    for kind in type(thing).__mro__:
        for name, member in vars(kind).items():
            if type(member) is types.MemberDescriptorType and (name in _WRAPPED or not name.startswith("__")):
                try:
                    held[name] = member.__get__(thing)
                except AttributeError:  # a slot that is empty
                    continue
    try:
        own = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return held
    return {**held, **own} if isinstance(own, dict) else held


def _items_of(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, types.MappingProxyType) else dict.items(value)


def _base_of(value: Any, bases: tuple[type, ...]) -> Iterator[Any]:
    """The items of a container, as the built-in class gives them, whatever a subclass has made of it."""
    base = next(base for base in bases if isinstance(value, base))
    return base.__iter__(value)  # type: ignore[attr-defined,no-any-return]  # each of them has one


def _content_of(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a variable that has no value yet
        return NotImplemented


def _doc_of(cls: type, members: Mapping[str, Any]) -> str:
    """A class's docstring: of a schema it is a prompt. Not the one that a dataclass makes up, which has reprs in it."""
    doc = members.get("__doc__")
    if not isinstance(doc, str) or ("__dataclass_fields__" in members and doc.startswith(f"{cls.__name__}(")):
        return ""
    return inspect.cleandoc(doc)


def _is_made_up(cls: type) -> bool:
    """Whether a class cannot be found where it says it stands: it was made while the program ran."""
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = vars(found).get(part) if isinstance(found, (types.ModuleType, type)) else None
    return found is not cls


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _others_name_of(cls: type) -> str:
    """The name of a class that is not ours. Where in its package it stands is its package's affair."""
    return f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"


def _label(value: Any) -> str:
    """What to sort a value by, and to tell one that is not followed from others: the same in every process."""
    kind = type(value)
    if kind in _PLAIN or issubclass(kind, _EXACT):
        return f"{kind.__name__} {value!r}"
    if issubclass(kind, Enum):
        return f"{_name_of(kind)}.{value._name_ or value._value_!r}"
    if issubclass(kind, (tuple, list)):
        return f"({' '.join(_label(item) for item in _base_of(value, (tuple, list)))})"
    if issubclass(kind, frozenset):
        return f"{{{' '.join(sorted(_label(item) for item in _base_of(value, (frozenset,))))}}}"
    if kind is typing.ForwardRef:
        return f"forward {value.__forward_arg__}"
    if kind in _NAMED or issubclass(kind, type) or kind.__module__ in _TYPING:
        name = next((name for said in _NAMES if isinstance(name := getattr(value, said, None), str)), "")
        return f"{kind.__name__} {getattr(value, '__module__', '')}.{name}"
    return _others_name_of(kind)


def _modules_of(graph: Compiled, tools: Iterable[Any], body_of: Callable[[Any], Any]) -> Iterator[str]:
    """The modules that a graph's nodes, conditional edges, schemas and tools stand in."""
    builder = getattr(graph, "builder", None)
    named = [getattr(builder, name, None) for name in _SCHEMA]
    for node in graph.nodes.values():
        branches = (branch_of(writer) for writer in node.writers)
        for part in (body_of(node.bound), *(branch.path for branch in branches if branch is not None)):
            named += [part, getattr(part, "func", None), getattr(part, "afunc", None)]
    for tool in tools:
        named += [tool, getattr(tool, "func", None), getattr(tool, "coroutine", None)]
    for part in named:
        while type(part) is functools.partial:
            part = part.func
        if type(part) is types.MethodType:
            yield type(part.__self__).__module__
        module = part.__module__ if type(part) is types.FunctionType or isinstance(part, type) else None
        yield module or type(part).__module__
