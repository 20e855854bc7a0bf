"""A tool-calling agent: the model answers, or asks for tools and is told what came of them, until it answers.

`build_agent` makes one from your tools and instructions; `graph` is a small one that does sums and counts words.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from holdfast.contracts.models import Message
from holdfast.contracts.verdicts import Autonomy
from holdfast.graphs.govern import govern
from holdfast.graphs.harmless import calculate, count_words
from holdfast.nodes.assembly import Prompt, assemble
from holdfast.nodes.context import RunContext
from holdfast.nodes.model import Conversation, model_node
from holdfast.nodes.tool import TOOLS, call_tool, send_tool_calls


def build_agent(
    *,
    name: str,
    tools: Sequence[Any],
    instructions: str,
    prompt_version: str,
    model: str | None = None,
    default_model: str | None = None,
    autonomy: Autonomy | None = None,
    max_tokens: int = 1024,
    max_chars: int = 48_000,
) -> CompiledStateGraph[Conversation, RunContext, Conversation, Conversation]:
    """A governed agent.

    `tools` are LangChain tools or typed functions. `instructions` are its system prompt, and `prompt_version` names
    their wording in the journal. `model` is a route or `provider:model` (None: the context's `model`);
    `default_model` is what the route `default` means where the operator names none. Each turn may write `max_tokens`
    and is shown at most `max_chars` of the conversation, whole turns, the newest first.

    How often it may go round is the run's limits to say, not the graph's.
    """
    prompt = partial(_prompt, instructions=instructions, prompt_version=prompt_version, max_chars=max_chars)
    builder = StateGraph(Conversation, context_schema=RunContext)
    builder.add_node("model", model_node(agent=name, prompt=prompt, model=model, max_tokens=max_tokens))
    builder.add_node(TOOLS, call_tool)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", send_tool_calls, [TOOLS, END])
    builder.add_edge(TOOLS, "model")
    return govern(builder.compile(), name=name, tools=tools, default_model=default_model, autonomy=autonomy)


def _prompt(history: list[Message], *, instructions: str, prompt_version: str, max_chars: int) -> Prompt:
    return assemble(instructions=instructions, prompt_version=prompt_version, history=history, max_chars=max_chars)


graph = build_agent(
    name="agent",
    tools=[calculate, count_words],
    instructions="You answer questions. Use the tools for sums and for counting words; do neither in your head.",
    prompt_version="agent-1",
    default_model="scripted:holdfast.graphs.scripts:agent",
)
