"""LangChain's messages and ours."""

import json
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, message_to_dict, messages_from_dict
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCall

from holdfast.contracts.errors import InvalidModelOutput
from holdfast.contracts.models import ModelResponse, ProviderReply, ToolCallRequest


def reply_of(message: BaseMessage) -> ProviderReply:
    """A provider's message as a reply, with its whole self in `raw`."""
    if not isinstance(message, AIMessage):
        raise InvalidModelOutput(f"the provider answered with a {type(message).__name__} instead of an AIMessage")
    usage = message.usage_metadata
    about = message.response_metadata
    return ProviderReply(
        content=message.text,
        tool_calls=tuple(_wish(call) for call in message.tool_calls),
        input_tokens=usage["input_tokens"] if usage else None,
        output_tokens=usage["output_tokens"] if usage else None,
        model=about.get("model_name") or about.get("model"),
        finish_reason=about.get("finish_reason") or about.get("stop_reason"),
        raw=_json_of(message),
    )


def message_of(response: ModelResponse) -> AIMessage:
    """A response as LangChain's message: the provider's own where there is one, else one with the call as its id."""
    if response.raw:
        [message] = messages_from_dict([response.raw])
        assert isinstance(message, AIMessage)  # reply_of lets nothing else in
        return message
    return AIMessage(
        content=response.content,
        id=response.raw_response_ref,
        tool_calls=[ToolCall(name=call.name, args=call.args, id=call.id) for call in response.tool_calls],
        usage_metadata=UsageMetadata(
            input_tokens=response.input_tokens,
            output_tokens=response.output_tokens,
            total_tokens=response.input_tokens + response.output_tokens,
        ),
        response_metadata={"model_name": response.model, "finish_reason": response.finish_reason},
    )


def answered_by_tool(reply: ProviderReply) -> ProviderReply:
    """A structured answer that came as the arguments of a tool, as content."""
    if not reply.tool_calls:
        return reply
    content = json.dumps(reply.tool_calls[0].args)
    return reply.model_copy(update={"content": content, "tool_calls": (), "raw": {}})


def _wish(call: ToolCall) -> ToolCallRequest:
    return ToolCallRequest(id=call["id"] or "", name=call["name"], args=call["args"])


def _json_of(message: AIMessage) -> dict[str, Any]:
    """The message as plain JSON; what a provider put in that is not JSON is kept as its text."""
    plain: dict[str, Any] = json.loads(json.dumps(message_to_dict(message), default=str))
    return plain
