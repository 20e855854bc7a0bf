"""A ready node: one model call on a conversation."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from langchain_core.messages import AIMessage, AnyMessage, convert_to_openai_messages
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict

from holdfast.contracts.models import Message, ModelResponse
from holdfast.nodes.assembly import Prompt
from holdfast.nodes.context import current


class Conversation(TypedDict):
    """State with messages: what the ready model and tool nodes read and write."""

    messages: Annotated[list[AnyMessage], add_messages]


def model_node(
    *,
    agent: str,
    prompt: Callable[[list[Message]], Prompt],
    tools: Sequence[str] = (),
    model: str | None = None,
    max_tokens: int = 1024,
) -> Callable[[Conversation], Awaitable[dict[str, Any]]]:
    """A node that shows a model the conversation and adds its answer.

    `prompt` assembles the context from the conversation so far; `tools` are names of the graph's own tools that the
    model may ask for. Which of them are then called is the next node's affair.
    """

    async def call_model(state: Conversation) -> dict[str, Any]:
        assembled = prompt(as_messages(state["messages"]))
        reply = await current().models.call(
            assembled.messages,
            agent=agent,
            model=model,
            tools=tools,
            max_tokens=max_tokens,
            prompt_version=assembled.prompt_version,
        )
        return {"messages": [as_ai_message(reply)]}

    return call_model


def as_messages(messages: Sequence[AnyMessage]) -> list[Message]:
    """LangChain's messages in the form that a model request has."""
    converted = convert_to_openai_messages(list(messages))
    return converted if isinstance(converted, list) else [converted]


def as_ai_message(reply: ModelResponse) -> AIMessage:
    """A model's answer as LangChain's message. Its id is the call's, so that a node that runs again adds no second."""
    calls = [{"id": call.id, "name": call.name, "args": call.args, "type": "tool_call"} for call in reply.tool_calls]
    return AIMessage(content=reply.content, tool_calls=calls, id=reply.raw_response_ref)
