"""The doors as a node's code sees them: `.models.call(...)` and `.tools.call(...)`."""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_openai_messages
from langgraph.errors import GraphInterrupt
from pydantic import BaseModel

from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.models import Message, ModelRequest, ModelResponse
from holdfast.contracts.scope import Scope
from holdfast.contracts.tools import Effect, ToolRequest, ToolResult, ToolTerms
from holdfast.gateway.toolset import Toolset
from holdfast.nodes.asking import dispatched, note_part
from holdfast.nodes.inside import asking_model, performing
from holdfast.nodes.mismatch import require_no_mismatch
from holdfast.nodes.session import RunSession, session_of
from holdfast.nodes.underway import underway

Messages = str | Sequence[Message | BaseMessage]


class Models:
    """The door for model calls of the node, or specialist, that it was taken from."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def call(
        self,
        messages: Messages,
        *,
        agent: str | None = None,
        model: str = "default",
        temperature: float = 0.0,
        max_tokens: int = 1024,
        response_schema: Mapping[str, Any] | type[BaseModel] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | None = None,
        prompt_version: str | None = None,
    ) -> ModelResponse:
        """Ask a model, within budget, deadline and policy; answered from the journal where this was asked before.

        `messages` are OpenAI-style dicts, LangChain messages or one text. `model` is a configured route or
        `"provider:model"`. With a `response_schema` the answer is JSON that fits it, under `.parsed`: an instance
        where the schema is a Pydantic class. Raises the errors of `holdfast.contracts.errors`: `BudgetExceeded`,
        `DeadlineExceeded`, `PolicyDenied`, `InvalidModelOutput` and what the provider's failure amounts to.
        """
        scope = self._scope
        scope.require_open("models.call")
        form = response_schema if isinstance(response_schema, type) else None
        request = ModelRequest(
            run_id=scope.run.run_id,
            agent_name=agent or scope.agent_name,
            model_policy=model,
            messages=chat_messages(messages),
            temperature=temperature,
            max_tokens=max_tokens,
            response_schema=_json_schema(response_schema),
            deadline=scope.deadline,
            tools=[dict(tool) for tool in tools or ()],
            tool_choice=tool_choice,
            prompt_version=prompt_version,
        )
        with underway().call(), asking_model():
            response = await scope.models.call(request, scope=scope)
        if form is None or response.parsed is None:
            return response
        return response.model_copy(update={"parsed": form.model_validate(response.parsed)})


class Tools:
    """The door for tool calls of the node, or specialist, that it was taken from."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def call(
        self, name: str, args: Mapping[str, Any], *, tool_call_id: str | None = None, agent: str | None = None
    ) -> ToolResult:
        """Call a tool of the graph by name. Raises LangGraph's `GraphInterrupt` where a person is asked first: the
        run pauses, and comes back to this line with the answer.

        A refusal, a failure and a person's no come back as a result with `status` and `error_type`, in words a model
        can act on. Raises `BudgetExceeded`, `DeadlineExceeded`, `RunCancelled` and `OutcomeUnknown`.
        """
        scope, session = self._scope, session_of("tools.call")
        scope.require_open("tools.call")
        return await called(
            name, args, session=session, scope=scope, toolset=session.toolset, tool_call_id=tool_call_id, agent=agent
        )

    def schemas(self) -> list[dict[str, Any]]:
        """The graph's tools in OpenAI's function form, for `models.call(tools=…)`."""
        return session_of("tools.schemas").toolset.schemas()

    def terms(self, name: str) -> ToolTerms:
        """How a tool is governed; `NotFound` for one the graph does not have."""
        return session_of("tools.terms").toolset.require(name).terms


async def called(
    name: str,
    args: Mapping[str, Any],
    *,
    session: RunSession,
    scope: Scope,
    toolset: Toolset,
    tool_call_id: str | None = None,
    agent: str | None = None,
) -> ToolResult:
    """Carry one tool call through the executor, asking a person where policy says so."""
    request = ToolRequest(
        run_id=scope.run.run_id,
        tool_call_id=tool_call_id or "",
        tool_name=name,
        input=dict(args),
        deadline=scope.deadline,
        agent_name=agent or scope.agent_name,
    )
    identity = session.executor.identify(request, scope=scope)
    if tool_call_id is None:
        request = request.model_copy(update={"tool_call_id": identity.key[:24]})
    entry = toolset.get(name)
    with underway().call(), performing(entry.source if entry is not None else None):
        if entry is not None and entry.terms.effect is not Effect.READ:
            await require_no_mismatch(session, scope, identity.site, before=identity)
        try:
            return await dispatched(request, identity, session=session, scope=scope, toolset=toolset)
        except GraphInterrupt as pause:
            note_part(session, pause, identity)
            raise


def chat_messages(messages: Messages) -> list[Message]:
    """Messages of any usual form as OpenAI's chat messages."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    converted: list[Message] = []
    for message in messages:
        match message:
            case BaseMessage():
                [plain_message] = convert_to_openai_messages([message])
                converted.append(dict(plain_message))
            case Mapping() if "role" in message:
                converted.append(dict(message))
            case _:
                raise InvalidRequest(
                    f"{message!r} is no message; use {{'role': …, 'content': …}} or a LangChain message"
                )
    return converted


def _json_schema(schema: Mapping[str, Any] | type[BaseModel] | None) -> dict[str, Any] | None:
    if schema is None:
        return None
    return schema.model_json_schema() if isinstance(schema, type) else dict(schema)
