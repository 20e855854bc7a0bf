"""Ready nodes for the tools that a model asks for: one task per call, so that an approval never repeats a sibling."""

from typing import Any, Literal

from langchain_core.messages import AIMessage, ToolMessage
from langgraph.types import Send
from typing_extensions import TypedDict

from holdfast.contracts.tools import ToolResult
from holdfast.nodes.context import current
from holdfast.nodes.model import Conversation

TOOLS = "tools"
"""The name that `send_tool_calls` expects the tool node to have."""


class ToolTask(TypedDict):
    """What one task of the tool node is sent: one call."""

    id: str
    name: str
    args: dict[str, Any]


def send_tool_calls(state: Conversation) -> list[Send] | Literal["__end__"]:
    """After the model: a task of the node `tools` for each tool call that it asked for, or the end."""
    last = state["messages"][-1]
    calls = last.tool_calls if isinstance(last, AIMessage) else []
    if not calls:
        return "__end__"
    return [Send(TOOLS, ToolTask(id=call["id"] or "", name=call["name"], args=call["args"])) for call in calls]


async def call_tool(state: ToolTask) -> dict[str, Any]:
    """Make one call through the executor; what came of it goes back to the model, failures and refusals too."""
    result = await current().tools.call(state["name"], state["args"], tool_call_id=state["id"])
    return {"messages": [as_tool_message(result, name=state["name"])]}


def as_tool_message(result: ToolResult, *, name: str) -> ToolMessage:
    """A tool's result as LangChain's message."""
    return ToolMessage(
        content=result.text,
        tool_call_id=result.tool_call_id,
        name=name,
        status="success" if result.status == "ok" else "error",
    )
