"""Models that answer from a Python function, offline: `scripted:<module>:<attribute>`."""

import asyncio
import functools
import importlib
import inspect
import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from holdfast.contracts.canonical import canonical
from holdfast.contracts.errors import ConfigurationError
from holdfast.contracts.models import ModelRequest, ProviderReply, ToolCallRequest
from holdfast.gateway.prices import SCRIPTED

_CHARACTERS_PER_TOKEN = 4


class ScriptedReply(BaseModel):
    """What a scripted model answers, where text alone does not say it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    content: str | dict[str, Any] = ""
    """A mapping is answered as JSON."""
    tool_calls: tuple[ToolCallRequest, ...] = ()
    input_tokens: int | None = Field(default=None, ge=0)
    """Default: a fourth of the characters of the messages."""
    output_tokens: int | None = Field(default=None, ge=0)
    """Default: a fourth of the characters of the answer."""
    cost_usd: Decimal | None = Field(default=None, ge=0)
    """Default: as configured for this model, else nothing."""
    delay_seconds: float = Field(default=0.0, ge=0)
    """How long the answer takes."""


Scripted = str | dict[str, Any] | ScriptedReply
Script = Callable[[ModelRequest], Scripted | Awaitable[Scripted]]
"""Answers a request. Driven by the request alone, so that the same request is always answered the same."""


class ScriptedProvider:
    """A model that is a function. Tokens are counted by length; what it costs is configured, or nothing."""

    def __init__(self, path: str) -> None:
        """`path` is `<module>:<attribute>`; raises `ConfigurationError` when it names no function."""
        self.provider = SCRIPTED
        self.model = path
        self._script = _script_at(path)

    async def send(self, request: ModelRequest, *, timeout_seconds: float) -> ProviderReply:
        answer = self._script(request)
        reply = _as_reply(await answer if inspect.isawaitable(answer) else answer)
        if reply.delay_seconds:
            await asyncio.sleep(reply.delay_seconds)
        content = reply.content if isinstance(reply.content, str) else json.dumps(reply.content, ensure_ascii=False)
        said = content + "".join(canonical(call.args).decode() for call in reply.tool_calls)
        return ProviderReply(
            content=content,
            tool_calls=reply.tool_calls,
            input_tokens=_either(reply.input_tokens, canonical(request.messages).decode()),
            output_tokens=_either(reply.output_tokens, said),
            cost_usd=reply.cost_usd,
            finish_reason="tool_calls" if reply.tool_calls else "stop",
        )


def _script_at(path: str) -> Script:
    module_name, _, attribute = path.rpartition(":")
    try:
        script = functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"scripted:{path} cannot be opened: {error}; a scripted model is named scripted:<module>:<function>"
        ) from error
    if not callable(script):
        raise ConfigurationError(f"scripted:{path} is a {type(script).__name__}, not a function of a model request")
    return script


def _as_reply(answer: object) -> ScriptedReply:
    match answer:
        case ScriptedReply():
            return answer
        case str() | dict():
            return ScriptedReply(content=answer)
    raise ConfigurationError(f"a scripted model answers with str, dict or ScriptedReply, not {type(answer).__name__}")


def _either(stated: int | None, text: str) -> int:
    return max(1, len(text) // _CHARACTERS_PER_TOKEN) if stated is None else stated
