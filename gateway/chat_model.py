"""A LangChain chat model that is a way to the gateway: for `create_agent` and other LangChain code."""

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from holdfast.contracts.errors import ConfigurationError, InvalidRequest
from holdfast.contracts.models import ModelRequest
from holdfast.contracts.scope import Scope, current_scope
from holdfast.gateway.langchain_message import message_of

_UNDERSTOOD = frozenset({"tools", "tool_choice", "response_format"})
_DESCRIPTIVE = frozenset({"ls_structured_output_format", "strict"})
"""Settings that change nothing here: the gateway checks every structured answer itself."""


class GatewayChatModel(BaseChatModel):
    """Answers through the model door of the governed node in which it is called; outside one it refuses."""

    route: str = "default"
    """A configured route, or `"provider:model"`."""
    agent_name: str | None = None
    """Whose calls these are; None: the node's agent."""
    temperature: float = 0.0
    max_tokens: int = 1024
    """The most output tokens of one call; they are reserved before it."""
    prompt_version: str | None = None

    @property
    def _llm_type(self) -> str:
        return "holdfast"

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools it may ask for."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=tool_choice, **kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        scope = current_scope("a model")
        request = self._request(scope, messages, stop, kwargs)
        response = await scope.models.call(request, scope=scope)
        return ChatResult(generations=[ChatGeneration(message=message_of(response))])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        raise ConfigurationError("a gateway chat model is asynchronous; call ainvoke instead of invoke")

    def _request(
        self, scope: Scope, messages: list[BaseMessage], stop: list[str] | None, settings: dict[str, Any]
    ) -> ModelRequest:
        unknown = sorted(set(settings) - _UNDERSTOOD - _DESCRIPTIVE) + (["stop"] if stop else [])
        if unknown:
            raise InvalidRequest(
                f"a gateway chat model does not take {', '.join(unknown)}; set what a route's model needs on the route"
            )
        return ModelRequest(
            run_id=scope.run.run_id,
            agent_name=self.agent_name or scope.agent_name,
            model_policy=self.route,
            messages=convert_to_openai_messages(messages),
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            response_schema=_schema_of(settings.get("response_format")),
            deadline=scope.deadline,
            tools=settings.get("tools") or [],
            tool_choice=settings.get("tool_choice"),
            prompt_version=self.prompt_version,
        )


def chat_model(route: str = "default", *, agent_name: str | None = None) -> GatewayChatModel:
    """A LangChain chat model for `route`, whose calls go through the door of the governed node it is used in."""
    return GatewayChatModel(route=route, agent_name=agent_name)


def _schema_of(response_format: Any) -> dict[str, Any] | None:
    match response_format:
        case None:
            return None
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
    raise InvalidRequest("response_format is not OpenAI's json_schema form: the only one a gateway chat model takes")
