"""A LangChain chat model of the user's own, asked through the gateway: the request is ours, the sending its own."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from holdfast.contracts.canonical import digest, plain
from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.models import ModelRequest
from holdfast.contracts.scope import Scope, current_scope
from holdfast.gateway.chat_model import GatewayChatModel
from holdfast.gateway.langchain_message import message_of
from holdfast.gateway.last_look import looks_last
from holdfast.gateway.providers import CarriedProvider
from holdfast.nodes.doors import chat_messages
from holdfast.nodes.inside import asking_model
from holdfast.nodes.underway import underway

Send = Callable[[BaseChatModel], Awaitable[ChatResult]]
"""Asks the given model as the user's code would have."""

ASSUMED_OUTPUT_TOKENS = 4096
"""Reserved for the answer of a model that sets no `max_tokens`. What is used beyond it is recorded in full."""


async def carried_model(
    model: BaseChatModel, messages: list[BaseMessage], stop: list[str] | None, settings: Mapping[str, Any], send: Send
) -> ChatResult:
    """The model's answer, by way of the gateway: replayed where the node has asked it before. Of several generations
    the first counts. LangChain's cache is passed over: it knows no tenant."""
    scope = current_scope(f"model {type(model).__name__}")
    looks_last(type(model))
    uncached = _without_cache(model)
    if isinstance(model, GatewayChatModel):
        with asking_model():
            return await send(uncached)

    async def ask() -> AIMessage:
        message = (await send(uncached)).generations[0].message
        if not isinstance(message, AIMessage):
            raise InvalidRequest(f"{type(model).__name__} answered with a {type(message).__name__}, not an AIMessage")
        return message

    request = _request(model, messages, stop, settings, scope)
    provider, _, name = request.model_policy.partition("#")[0].partition(":")
    with underway().call(), asking_model():
        response = await scope.models.call(
            request, scope=scope, provider=CarriedProvider(ask, provider=provider, model=name)
        )
    return ChatResult(generations=[ChatGeneration(message=message_of(response))])


def as_chunk(message: AIMessage) -> AIMessageChunk:
    """A whole message as the one chunk of a stream."""
    fields = message.model_dump(exclude={"type"})
    return AIMessageChunk(**fields, chunk_position="last")


def _request(
    model: BaseChatModel,
    messages: list[BaseMessage],
    stop: list[str] | None,
    settings: Mapping[str, Any],
    scope: Scope,
) -> ModelRequest:
    """What is asked, as the journal knows it: every setting that makes it another request is in its digest."""
    about = model._get_ls_params(stop=stop, **settings)  # noqa: SLF001  # LangChain's standard way to name a model
    params = _told(model._get_invocation_params(stop=stop, **settings))  # noqa: SLF001
    named = f"{about.get('ls_provider') or 'langchain'}:{about.get('ls_model_name') or type(model).__name__}"
    tools = [tool for tool in _told(settings.get("tools") or []) if isinstance(tool, dict)]
    return ModelRequest(
        run_id=scope.run.run_id,
        agent_name=scope.agent_name,
        model_policy=f"{named}#{digest(params)[:16]}",
        messages=chat_messages(messages),
        temperature=about.get("ls_temperature") or 0.0,
        max_tokens=about.get("ls_max_tokens") or ASSUMED_OUTPUT_TOKENS,
        deadline=scope.deadline,
        tools=tools,
    )


def _told(value: Any) -> Any:
    """`value` as JSON, with the class in the place of what is not JSON: an object's address must not make the same
    request another."""
    match value:
        case Mapping():
            return {str(key): _told(item) for key, item in value.items()}
        case list() | tuple():
            return [_told(item) for item in value]
        case type():
            return f"{value.__module__}.{value.__qualname__}"
    try:
        return plain(value)
    except InvalidRequest:
        return f"{type(value).__module__}.{type(value).__qualname__}"


def _without_cache(model: BaseChatModel) -> BaseChatModel:
    cached = isinstance(model.cache, BaseCache) or (model.cache is not False and get_llm_cache() is not None)
    return model.model_copy(update={"cache": False}) if cached else model
