"""A LangChain tool of the user's own, called through the executor: the call is ours, the body its own.

What the model decides is the call: arguments that LangGraph injects (state, store, runtime) reach the body and are
no part of it. An answer is kept in the journal as JSON: a `ToolMessage` as LangChain writes it, a `Command` and the
like packed by LangGraph's serializer; one that cannot be packed is returned once, and a re-run finds a note of it.
"""

import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.messages import ToolMessage, message_to_dict, messages_from_dict
from langchain_core.tools import BaseTool
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from holdfast.contracts.canonical import plain
from holdfast.contracts.classification import recalled
from holdfast.contracts.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    ErrorType,
    HoldfastError,
    HumanRequired,
    InvalidRequest,
    NotGoverned,
    RunCancelled,
    StoreUnavailable,
)
from holdfast.contracts.scope import current_scope
from holdfast.contracts.tools import ToolResult
from holdfast.gateway.toolset import Tool, Toolset
from holdfast.nodes.doors import called
from holdfast.nodes.inside import Fatal
from holdfast.nodes.session import session_of

Act = Callable[[Any], Awaitable[Any]]
"""Runs the tool's own body on the given input."""

_ENDS_THE_NODE = (BudgetExceeded, DeadlineExceeded, HumanRequired, NotGoverned, RunCancelled, StoreUnavailable)


async def carried_tool(tool: BaseTool, tool_input: Any, tool_call_id: str | None, act: Act) -> Any:
    """What the tool answers, by way of the executor.

    A refusal and a person's no are told to the model that asked; an exception of the tool's own is raised as it would
    have been. What must end the node (a spent budget, say) ends it even where the tool node makes messages of errors.
    """
    scope, session = current_scope(f"tool {tool.name!r}"), session_of(f"tool {tool.name!r}")
    entry = session.toolset.entry_of(tool)
    body = _Body(entry, tool, tool_input, act)
    toolset = Toolset([replace(entry, run=body.run, source=None)])
    try:
        result = await called(
            tool.name, body.visible(), session=session, scope=scope, toolset=toolset, tool_call_id=tool_call_id
        )
    except _ENDS_THE_NODE as error:
        if tool_call_id is None:
            raise
        raise Fatal(error) from error
    return body.answer(result, tool_call_id)


@dataclass(slots=True)
class _Body:
    entry: Tool
    tool: BaseTool
    tool_input: Any
    act: Act
    answers: list[Any] = field(default_factory=list)
    """What the body returned here, unpacked."""
    failure: Exception | None = None

    def visible(self) -> dict[str, Any]:
        """The arguments that the model decided on."""
        if isinstance(self.tool_input, Mapping):
            return self.tool._filter_injected_args(dict(self.tool_input))  # noqa: SLF001  # as LangChain's own events
        return {self._first(): self.tool_input}

    async def run(self, args: Mapping[str, Any]) -> Any:
        """Act on the arguments that were let through, with what was injected beside them. What the model decided on
        and a person took out is not among them."""
        given = self._injected() | dict(args) if isinstance(self.tool_input, Mapping) else args[self._first()]
        self.failure = None
        try:
            answer = await self.act(given)
        except Exception as error:
            self.failure = error
            raise
        self.answers.append(answer)
        return _packed(answer)

    def answer(self, result: ToolResult, tool_call_id: str | None) -> Any:
        """The executor's result as the tool's caller expects it."""
        if result.status == "ok":
            if self.answers:
                return self.answers[-1]
            return _unpacked(result, tool_call_id, self.tool.name)
        if self.failure is not None and not isinstance(self.failure, HoldfastError):
            raise self.failure
        if tool_call_id is not None:
            return _told(result, tool_call_id, self.tool.name)
        if result.output is not None:
            return result.output.get("result", result.output)
        raise recalled(result.error_type or ErrorType.HUMAN_REQUIRED, result.error_message or result.status, {})

    def _injected(self) -> dict[str, Any]:
        decided = self.visible()
        return {name: value for name, value in self.tool_input.items() if name not in decided}

    def _first(self) -> str:
        """The argument that a text alone stands for."""
        return next(iter(self.entry.input_schema.get("properties", ())), "input")


def _packed(answer: Any) -> Any:
    if isinstance(answer, ToolMessage):
        message = message_to_dict(answer)
        if _is_json(message):
            return {"langchain": "message", "message": message}
    elif _is_json(answer):
        return {"langchain": "value", "value": answer}
    try:
        kind, data = JsonPlusSerializer().dumps_typed(answer)
    except (TypeError, ValueError) as error:
        return {"note": f"the tool did its work; its answer, a {type(answer).__name__}, cannot be kept: {error}"}
    return {"langchain": "packed", "type": kind, "data": base64.b64encode(data).decode()}


def _is_json(value: Any) -> bool:
    try:
        return bool(plain(value) == value)
    except InvalidRequest:
        return False


def _unpacked(result: ToolResult, tool_call_id: str | None, name: str) -> Any:
    """The recorded answer, for the call that asks now: a replayed message answers its own tool call."""
    match result.output:
        case {"langchain": "message", "message": message}:
            [restored] = messages_from_dict([message])
            return restored.model_copy(update={"tool_call_id": tool_call_id})
        case {"langchain": "value", "value": value}:
            return value
        case {"langchain": "packed", "type": kind, "data": data}:
            return JsonPlusSerializer().loads_typed((kind, base64.b64decode(data)))
    # Reconciled, given by a person, or too large to be kept whole.
    return result.text if tool_call_id is None else _told(result, tool_call_id, name)


def _told(result: ToolResult, tool_call_id: str, name: str) -> ToolMessage:
    status = "error" if result.error_type is not None else "success"
    return ToolMessage(content=result.text, tool_call_id=tool_call_id, name=name, status=status)
