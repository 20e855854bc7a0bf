"""The tools a graph may use, by name, each with the terms it is governed by.

A tool is a function decorated with `tool`, a plain typed function, or any LangChain tool. One that declares no terms
is taken for the strictest that works: it reaches others, and must not be sent twice.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, get_type_hints, overload

from jsonschema.exceptions import SchemaError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, ConfigDict, Field, PydanticSchemaGenerationError, ValidationError, create_model

from holdfast.contracts.canonical import canonical, plain
from holdfast.contracts.deadline import Deadline
from holdfast.contracts.errors import ConfigurationError, InvalidRequest, NotFound, NotGoverned
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.tools import Effect, ToolTerms
from holdfast.gateway.last_look import looks_last

Reconcile = Callable[[str], Any]
"""Asked with an idempotency key what became of a call: its result when it was done, None when it certainly was not.
It raises when it cannot tell; then a person is asked. Synchronous or asynchronous."""

Preview = Callable[..., Any]
"""Given a call's arguments by name, says in words what the call would do. Synchronous or asynchronous."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """What a tool is told of its call. A parameter annotated with this class is filled in, and hidden from models."""

    idempotency_key: str
    """The same whenever the same call is sent again: hand it to whoever acts."""
    deadline: Deadline
    """By when the tool must answer."""
    tenant: TenantId
    run_id: RunId
    tool_call_id: str


_call: ContextVar[ToolCall | None] = ContextVar("holdfast_tool_call", default=None)


def current_tool_call() -> ToolCall:
    """The call that this tool was sent for; for LangChain tools that take no `ToolCall`. Raises `NotGoverned`."""
    if (call := _call.get()) is None:
        raise NotGoverned(
            "this tool needs its ToolCall, but nothing called it through a governed node; use the node's tools",
            action="current_tool_call",
            rule="tool.ungoverned",
        )
    return call


def called_within() -> str | None:
    """The key of the call whose tool's body asks here; None: a node's own code does."""
    call = _call.get()
    return None if call is None else call.idempotency_key


class called_for:  # noqa: N801  # reads as a word: `with called_for(call):`
    """Makes `call` the one that `current_tool_call()` returns in the block."""

    def __init__(self, call: ToolCall) -> None:
        self._entered = call

    def __enter__(self) -> None:
        self._token = _call.set(self._entered)

    def __exit__(self, *exc: object) -> None:
        _call.reset(self._token)


class GovernedTool(StructuredTool):
    """A LangChain tool that carries its terms, as `tool` makes it. `create_agent` takes it like any other."""

    terms: ToolTerms = ToolTerms()
    reconcile: Reconcile | None = None
    preview: Preview | None = None


@overload
def tool(function: Callable[..., Any], /) -> GovernedTool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect | str = Effect.EXTERNAL,
    idempotent: bool = False,
    timeout_seconds: float = 30.0,
    permissions: Iterable[str] = (),
    max_result_bytes: int = 65_536,
    reconcile: Reconcile | None = None,
    preview: Preview | None = None,
) -> Callable[[Callable[..., Any]], GovernedTool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    reconcile: Reconcile | None = None,
    preview: Preview | None = None,
    **terms: Any,
) -> GovernedTool | Callable[[Callable[..., Any]], GovernedTool]:
    """A typed function, synchronous or asynchronous, as a tool with terms (see `ToolTerms` for them).

    The model sees the function's name, docstring and parameters. `reconcile(idempotency_key)` tells what became of a
    call whose answer was lost; `preview(**arguments)` says in words what a call would do. A synchronous function runs
    in a thread, which nothing can stop: after its timeout it is no longer waited for, but it runs on. Raises
    `ConfigurationError` for a function that a model could not call.
    """

    def made(function: Callable[..., Any]) -> GovernedTool:
        return _governed(function, name, description, _terms(terms, of=function.__name__), reconcile, preview)

    return made if function is None else made(function)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One tool as the executor knows it."""

    name: str
    terms: ToolTerms
    schema: Mapping[str, Any]
    """The tool in OpenAI's function form, as models are told of it."""
    run: Callable[[Mapping[str, Any]], Awaitable[Any]]
    """Acts. Called with checked arguments, inside `called_for(...)`."""
    reconcile: Reconcile | None = None
    preview: Preview | None = None
    parse: type[BaseModel] | None = None
    """Checks arguments further than JSON Schema can, where the tool has a Pydantic model."""
    source: BaseTool | None = None
    """The LangChain tool that it was made from."""
    validator: Validator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kind = validator_for(self.input_schema)
        try:
            kind.check_schema(self.input_schema)
        except SchemaError as error:
            raise ConfigurationError(
                f"the input schema of tool {self.name!r} is not JSON Schema: {error.message}"
            ) from error
        object.__setattr__(self, "validator", kind(self.input_schema))

    @property
    def input_schema(self) -> Mapping[str, Any]:
        """The JSON Schema of the arguments."""
        parameters: Mapping[str, Any] = self.schema["function"]["parameters"]
        return parameters

    @property
    def harmless_twice(self) -> bool:
        """Whether a call may be sent again when it is not known what became of it."""
        return self.terms.effect is Effect.READ or self.terms.idempotent

    def completed(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """`args` with the schema's defaults: what policy judges and a person approves is all that will be used."""
        properties = self.input_schema.get("properties", {})
        defaults = {name: shape["default"] for name, shape in properties.items() if "default" in shape}
        return {**defaults, **{name: _exact(value, properties.get(name, {})) for name, value in args.items()}}

    def require_valid(self, args: Mapping[str, Any]) -> None:
        """Raise `InvalidRequest` naming the argument that does not fit and what is allowed."""
        canonical(args)
        if (error := best_match(self.validator.iter_errors(args))) is not None:
            raise self._misfit(".".join(map(str, error.absolute_path)), error.message)
        if self.parse is not None:
            try:
                self.parse.model_validate(args)
            except ValidationError as invalid:
                first = invalid.errors(include_url=False)[0]
                raise self._misfit(".".join(map(str, first["loc"])), first["msg"]) from invalid

    def _misfit(self, argument: str, complaint: str) -> InvalidRequest:
        where = f"argument {argument!r} of {self.name}" if argument else f"the arguments of {self.name}"
        return InvalidRequest(
            f"{where}: {complaint}. {self.name} takes {self._parameters()}", tool_name=self.name, argument=argument
        )

    def _parameters(self) -> str:
        required = set(self.input_schema.get("required", ()))
        shapes = self.input_schema.get("properties", {})
        said = [f"{name} ({_type_in_words(shapes[name])}{'' if name in required else ', optional'})" for name in shapes]
        return ", ".join(said) or "no arguments"


class Toolset(Mapping[str, Tool]):
    """Tools by name. Immutable."""

    def __init__(self, tools: Iterable[Tool] = (), terms: Mapping[str, ToolTerms] | None = None) -> None:
        """`terms`: what is set from outside for tools by name, in the toolset or not; see `entry_of`."""
        self._tools: dict[str, Tool] = {}
        self._terms = terms or {}
        for entry in tools:
            if entry.name in self._tools:
                raise ConfigurationError(f"two tools are named {entry.name!r}; names are unique within a graph")
            self._tools[entry.name] = entry

    @classmethod
    def of(
        cls, tools: Iterable[BaseTool | Callable[..., Any]], terms: Mapping[str, ToolTerms] | None = None
    ) -> "Toolset":
        """A toolset of LangChain tools and typed functions.

        `terms`, from the configuration and by name, change what they set of what a tool declares. A LangChain tool
        declares its terms in `metadata`: `metadata={"effect": "read"}`.
        """
        return cls(_entry(each) for each in tools).governed_by(terms or {})

    def governed_by(self, terms: Mapping[str, ToolTerms]) -> "Toolset":
        """The same tools, with what `terms` sets for a name in place of what the tool declares."""
        return Toolset(
            (
                replace(entry, terms=_changed(entry.terms, terms[name])) if name in terms else entry
                for name, entry in self._tools.items()
            ),
            terms,
        )

    def entry_of(self, source: BaseTool) -> Tool:
        """The entry of this very tool, or one made of it: a namesake's declarations are not its own, but what is set
        from outside for its name holds for it too."""
        known = self._tools.get(source.name)
        if known is not None and known.source is source:
            return known
        return Toolset.of([source], self._terms)[source.name]

    def require(self, name: str) -> Tool:
        """The tool of that name; raises `NotFound` naming those there are."""
        if (entry := self._tools.get(name)) is None:
            known = ", ".join(self._tools) or "none"
            raise NotFound(f"there is no tool {name!r}; the tools here are: {known}", tool_name=name)
        return entry

    def schemas(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's function form, for a model request."""
        return [dict(entry.schema) for entry in self._tools.values()]

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    def __len__(self) -> int:
        return len(self._tools)

    def __repr__(self) -> str:
        return f"Toolset({', '.join(self._tools)})"


def _entry(source: BaseTool | Callable[..., Any]) -> Tool:
    made = source if isinstance(source, BaseTool) else tool(source)
    looks_last(type(made))
    governed = made if isinstance(made, GovernedTool) else None
    shape = made.tool_call_schema
    return Tool(
        name=made.name,
        terms=governed.terms if governed is not None else _declared(made),
        schema=_schema(made),
        run=lambda args: made.ainvoke(dict(args)),
        reconcile=governed.reconcile if governed is not None else None,
        preview=governed.preview if governed is not None else None,
        parse=shape if made.args_schema and isinstance(shape, type) and issubclass(shape, BaseModel) else None,
        source=made,
    )


def _schema(made: BaseTool) -> dict[str, Any]:
    schema: dict[str, Any] = convert_to_openai_tool(made)
    parameters = dict(schema["function"].get("parameters") or {"type": "object", "properties": {}})
    if isinstance(made, GovernedTool):
        parameters["additionalProperties"] = False
    return {**schema, "function": {**schema["function"], "parameters": parameters}}


def _declared(made: BaseTool) -> ToolTerms:
    notes = made.metadata or {}
    if "effect" not in notes:
        return ToolTerms()
    return _terms({name: notes[name] for name in ToolTerms.model_fields if name in notes}, of=made.name)


def _terms(given: Mapping[str, Any], *, of: str) -> ToolTerms:
    try:
        return ToolTerms.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigurationError(
            f"the terms of tool {of!r}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error


def _changed(declared: ToolTerms, by: ToolTerms) -> ToolTerms:
    return declared.model_copy(update={name: getattr(by, name) for name in by.model_fields_set})


def _governed(
    function: Callable[..., Any],
    name: str | None,
    description: str | None,
    terms: ToolTerms,
    reconcile: Reconcile | None,
    preview: Preview | None,
) -> GovernedTool:
    name = name or function.__name__
    description = description or inspect.getdoc(function)
    if not description:
        raise ConfigurationError(
            f"tool {name!r} has no docstring; a model chooses its tools by what they say of themselves"
        )
    hints = _hints(function, name)
    calls = [parameter for parameter, hint in hints.items() if hint is ToolCall]
    shape = _arguments(function, name, hints)
    run = _with_call(function, calls)
    is_async = inspect.iscoroutinefunction(function)
    return GovernedTool(
        name=name,
        description=description,
        args_schema=shape,
        func=None if is_async else run,
        coroutine=run if is_async else None,
        terms=terms,
        reconcile=reconcile,
        preview=preview,
    )


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigurationError(f"the annotations of tool {name!r} cannot be resolved: {error}") from error


def _arguments(function: Callable[..., Any], name: str, hints: Mapping[str, Any]) -> type[BaseModel]:
    """The Pydantic model of the function's parameters, without the injected `ToolCall`."""
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if (
            parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
            or parameter.name not in hints
        ):
            raise ConfigurationError(
                f"parameter {parameter.name!r} of tool {name!r} cannot be shown to a model: a parameter is named "
                "and annotated"
            )
        if hints[parameter.name] is not ToolCall:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], Field(default))
    try:
        return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    except (PydanticSchemaGenerationError, NameError, TypeError) as error:
        raise ConfigurationError(f"the parameters of tool {name!r} have no schema: {error}") from error


def _with_call(function: Callable[..., Any], parameters: Iterable[str]) -> Callable[..., Any]:
    """`function` with the current `ToolCall` filled in."""
    injected = tuple(parameters)

    def call() -> dict[str, ToolCall]:
        return {parameter: current_tool_call() for parameter in injected}

    async def run(**arguments: Any) -> Any:
        return await function(**arguments, **call())

    def run_in_thread(**arguments: Any) -> Any:
        return function(**arguments, **call())

    return run if inspect.iscoroutinefunction(function) else run_in_thread


def _exact(value: Any, shape: Mapping[str, Any]) -> Any:
    """An integer too large for JSON's numbers comes back from the journal as a text: here it is the integer again."""
    if not isinstance(value, str) or shape.get("type") != "integer":
        return value
    try:
        number = int(value)
    except ValueError:
        return value
    return number if plain(number) == value else value


def _type_in_words(shape: Mapping[str, Any]) -> str:
    if "enum" in shape:
        return " | ".join(map(repr, shape["enum"]))
    options = [option.get("type", "value") for option in shape.get("anyOf", ())]
    return " or ".join(options) if options else str(shape.get("type", "value"))
