"""Who answers: configured routes, and any `"provider:model"` that LangChain's `init_chat_model` knows."""

import asyncio
import functools
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, convert_to_messages
from langchain_core.runnables import Runnable

from holdfast.contracts.errors import ConfigurationError, InvalidRequest, InvariantViolated, NotFound
from holdfast.contracts.models import Message, ModelProvider, ModelRequest, ProviderReply
from holdfast.contracts.scope import Scope
from holdfast.gateway.langchain_message import answered_by_tool, reply_of
from holdfast.gateway.last_look import looks_last
from holdfast.gateway.prices import SCRIPTED
from holdfast.gateway.scripted import ScriptedProvider

DEFAULT_ROUTE = "default"

_EXTRAS = {"openai": "openai", "azure_openai": "openai", "anthropic": "anthropic"}
_MOST_BUILT = 64


class Providers:
    """The models that a gateway can reach."""

    def __init__(self, routes: Mapping[str, str], default_model: str | None = None) -> None:
        """`routes` maps a route's name to `"provider:model"`; `default_model` is what the route `default` means."""
        self._routes = routes
        self._default_model = default_model
        self._open: dict[str, ModelProvider] = {}

    def named(self, model_policy: str, scope: Scope) -> str:
        """The model, as `"provider:model"`, that a request's `model_policy` means for the node of `scope`.

        Raises `NotFound` for what is neither a route nor a model, `ConfigurationError` when no default is set.
        """
        if (target := self._routes.get(model_policy)) is not None:
            return target
        if model_policy == DEFAULT_ROUTE:
            return self._default(scope)
        provider, _, model = model_policy.partition(":")
        if provider and model:
            return model_policy
        known = ", ".join(sorted({*self._routes, DEFAULT_ROUTE}))
        raise NotFound(
            f"there is no model route {model_policy!r}; the routes are {known}. A model can also be named directly, "
            'as "provider:model"',
            model_policy=model_policy,
        )

    async def open(self, name: str) -> ModelProvider:
        """The provider of the model `"provider:model"`, ready to send. Loaded once, off the loop.

        Raises `ConfigurationError` when its package or its key is missing.
        """
        if name not in self._open:
            self._open[name] = await asyncio.to_thread(_opened, name)
        return self._open[name]

    def _default(self, scope: Scope) -> str:
        target = self._default_model or scope.default_model
        if target is None:
            raise ConfigurationError(
                f"graph {scope.graph_name!r} asks for the default model, and none is set; "
                "set HOLDFAST_MODEL, for instance to openai:gpt-4o-mini"
            )
        return target


class SilentProviders(Providers):
    """The names of models, with nobody behind them: for doors that answer from a record alone."""

    async def open(self, name: str) -> ModelProvider:
        provider, _, model = name.partition(":")
        return _Nobody(provider, model)


class _Nobody:
    def __init__(self, provider: str, model: str) -> None:
        self.provider = provider
        self.model = model

    async def send(self, request: ModelRequest, *, timeout_seconds: float) -> ProviderReply:
        raise InvariantViolated(f"{self.provider}:{self.model} was to be asked where only a record may answer")


class LangChainProvider:
    """A model of any LangChain integration. Retries are the gateway's, so its own are turned off."""

    def __init__(self, provider: str, model: str) -> None:
        """Raises `ConfigurationError` when the provider's package or key is missing."""
        self.provider = provider
        self.model = model
        self._profile = _built(provider, model).profile or {}
        self._models: OrderedDict[tuple[float, int], BaseChatModel] = OrderedDict()

    async def send(self, request: ModelRequest, *, timeout_seconds: float) -> ProviderReply:
        chat_model = await self._model(request.temperature, request.max_tokens)
        messages = _converted(request.messages)
        if request.tools:
            tooled = chat_model.bind_tools(request.tools, tool_choice=request.tool_choice)
            return reply_of(await self._asked(tooled, _told_of(request.response_schema, messages)))
        if request.response_schema is None:
            return reply_of(await self._asked(chat_model, messages))
        structured = chat_model.with_structured_output(_titled(request.response_schema), include_raw=True)
        answer = await self._asked(structured, messages)
        return answered_by_tool(reply_of(answer["raw"]))

    async def _asked(self, runnable: Runnable[LanguageModelInput, Any], messages: list[BaseMessage]) -> Any:
        # No callbacks: the gateway's own records and spans tell of the call, once.
        return await runnable.ainvoke(messages, config={"callbacks": []})

    async def _model(self, temperature: float, max_tokens: int) -> BaseChatModel:
        """The model with these settings. They are given when it is built: integrations agree on no other way."""
        settings = (temperature, max_tokens)
        if settings not in self._models:
            takes_temperature = self._profile.get("temperature", True)
            warmth = {"temperature": temperature} if takes_temperature else {}
            build = functools.partial(_built, self.provider, self.model, max_tokens=max_tokens, **warmth)
            built = self._models[settings] = await asyncio.to_thread(build)
            looks_last(type(built))
        self._models.move_to_end(settings)
        chat_model = self._models[settings]
        if len(self._models) > _MOST_BUILT:
            self._models.popitem(last=False)
        return chat_model


class CarriedProvider:
    """A LangChain model of the user's own, carried through the gateway as it is."""

    def __init__(self, send: Callable[[], Awaitable[AIMessage]], provider: str, model: str) -> None:
        """`send` asks the user's model with its own messages and settings."""
        self.provider = provider
        self.model = model
        self._send = send

    async def send(self, request: ModelRequest, *, timeout_seconds: float) -> ProviderReply:
        return reply_of(await self._send())


def _opened(name: str) -> ModelProvider:
    provider, _, model = name.partition(":")
    return ScriptedProvider(model) if provider == SCRIPTED else LangChainProvider(provider, model)


def _built(provider: str, model: str, **settings: Any) -> BaseChatModel:
    try:
        chat_model: BaseChatModel = init_chat_model(
            model, model_provider=provider, max_retries=0, disable_streaming=True, **settings
        )
    except ImportError as error:
        extra = _EXTRAS.get(provider)
        install = f'pip install "holdfast[{extra}]"' if extra else str(error)
        raise ConfigurationError(f"{provider}:{model} needs a package that is not installed: {install}") from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"{provider}:{model} cannot be opened: {reason}") from error
    return chat_model


def _converted(messages: list[Message]) -> list[BaseMessage]:
    try:
        return convert_to_messages(messages)
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidRequest(f"the messages are not in the form of OpenAI's chat messages: {reason}") from error


def _told_of(schema: dict[str, Any] | None, messages: list[BaseMessage]) -> list[BaseMessage]:
    """The messages with the schema in words, after the leading system messages. Beside tools it is said this way:
    providers' own ways to enforce it want every tool's schema to be strict too."""
    if schema is None:
        return messages
    leading = next((at for at, message in enumerate(messages) if message.type != "system"), len(messages))
    rule = SystemMessage(
        "When you answer instead of calling a tool, answer with JSON alone that fits this JSON Schema: "
        + json.dumps(schema)
    )
    return [*messages[:leading], rule, *messages[leading:]]


def _titled(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` with the title that LangChain makes the answer's name of."""
    return schema if "title" in schema else {"title": "answer", **schema}
