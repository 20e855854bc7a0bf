"""A ready node: one model call on a conversation."""

from collections.abc import Callable
from typing import Annotated, Any, Protocol

from langchain_core.messages import AIMessage, AnyMessage
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from holdfast.contracts.models import Message, ModelResponse
from holdfast.nodes.assembly import Prompt
from holdfast.nodes.context import RunContext, current
from holdfast.nodes.doors import chat_messages


class Conversation(TypedDict):
    """State with messages: what the ready model and tool nodes read and write."""

    messages: Annotated[list[AnyMessage], add_messages]


class ModelNode(Protocol):
    """A node of a graph whose context is a `RunContext`."""

    async def __call__(self, state: Conversation, runtime: Runtime[RunContext]) -> dict[str, Any]:
        """The model's answer, as an update of the conversation."""
        ...


def model_node(
    *, agent: str, prompt: Callable[[list[Message]], Prompt], model: str | None = None, max_tokens: int = 1024
) -> ModelNode:
    """A node that shows a model the conversation and the graph's tools, and adds its answer.

    `prompt` assembles the context from the conversation so far. `model` is a route or `provider:model`; None takes
    the context's. Which of the tools are then called is the next node's affair.
    """

    async def call_model(state: Conversation, runtime: Runtime[RunContext]) -> dict[str, Any]:
        assembled = prompt(chat_messages(state["messages"]))
        reply = await current().models.call(
            assembled.messages,
            agent=agent,
            model=model or route_of(runtime),
            tools=current().tools.schemas(),
            max_tokens=max_tokens,
            prompt_version=assembled.prompt_version,
        )
        return {"messages": [as_ai_message(reply)]}

    return call_model


def route_of(runtime: Runtime[RunContext]) -> str:
    """The model that the context names. Below a foreign graph the context is that graph's own, and names none."""
    return runtime.context.model if isinstance(runtime.context, RunContext) else "default"


def as_ai_message(reply: ModelResponse) -> AIMessage:
    """A model's answer as LangChain's message. Its id is the call's, so that a node that runs again adds no second."""
    calls = [{"id": call.id, "name": call.name, "args": call.args, "type": "tool_call"} for call in reply.tool_calls]
    return AIMessage(content=reply.content, tool_calls=calls, id=reply.raw_response_ref)
