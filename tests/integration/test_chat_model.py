"""LangChain code that goes through the model gateway by way of its chat model."""

from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from holdfast.contracts.errors import ConfigurationError, InvalidRequest, NotGoverned
from holdfast.contracts.limits import Limits
from holdfast.contracts.models import ToolCallRequest
from holdfast.contracts.scope import Scope, entered
from holdfast.gateway.chat_model import chat_model
from holdfast.gateway.models import ModelGateway
from holdfast.gateway.prices import Prices
from holdfast.gateway.providers import Providers
from holdfast.gateway.scripted import ScriptedReply
from holdfast.gateway.sending import Sender, SendTerms
from holdfast.policies.permissions import CedarPolicy
from holdfast.runtime.entropy import SystemIds
from holdfast.testing.clock import FixedDice, VirtualClock
from holdfast.testing.memory import MemoryStore
from holdfast.testing.scopes import rerun, scope_for
from holdfast.testing.scripted import Script, scripted


class Decision(BaseModel):
    """What the desk decides."""

    amount: float
    why: str


@tool
def look_up(order: str) -> str:
    """Look an order up."""
    return f"{order} was sent on Monday"


class Node:
    """A governed node, in which a chat model is used."""

    def __init__(self) -> None:
        self.store = MemoryStore(clock=VirtualClock())
        self.gateway = ModelGateway(
            journal=self.store.journal,
            ledger=self.store.ledger,
            events=self.store.events,
            policy=CedarPolicy.load(),
            providers=Providers({}),
            prices=Prices(),
            clock=VirtualClock(),
            ids=SystemIds(),
            sender=Sender(dice=FixedDice(), terms=SendTerms()),
        )

    async def scope(self, limits: Limits | None = None) -> Scope:
        return await scope_for(self.store, clock=VirtualClock(), models=self.gateway, limits=limits)


@pytest.fixture
def node() -> Node:
    return Node()


def wishing(*args: Any) -> ScriptedReply:
    return ScriptedReply(tool_calls=(ToolCallRequest(id="call_1", name="look_up", args={"order": "A-1"}),))


@pytest.fixture
def script() -> Iterator[Script]:
    """Looks the order up first, and answers from what it was told."""

    def answer(request: Any) -> Any:
        last = request.messages[-1]
        return f"It says: {last['content']}" if last["role"] == "tool" else wishing()

    with scripted("chat", *([answer] * 9)) as running:
        yield running


async def test_a_message_is_answered_and_counted(node):
    with scripted("plain", "hello there") as script, entered(await node.scope()) as scope:
        answer = await chat_model(script.model).ainvoke([SystemMessage("Be kind."), HumanMessage("hi")])

    assert isinstance(answer, AIMessage)
    assert answer.content == "hello there"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] > 0
    [sent] = script.requests
    assert sent.messages == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    assert sent.agent_name == scope.agent_name
    [record] = await node.store.journal.of_run(scope.owner.tenant_id, scope.owner.run_id)
    assert answer.id == f"call:{record.call_id}"


async def test_a_node_that_runs_again_gets_the_same_message(node):
    with scripted("again", "hello there") as script:
        model = chat_model(script.model, agent_name="greeter")
        scope = await node.scope()
        with entered(scope):
            first = await model.ainvoke("hi")
        with entered(rerun(scope)):
            second = await model.ainvoke("hi")

    assert first == second
    assert script.sends == 1
    assert script.requests[0].agent_name == "greeter"


async def test_outside_a_governed_node_it_refuses(node):
    with scripted("nobody") as script, pytest.raises(NotGoverned):
        await chat_model(script.model).ainvoke("hi")

    assert script.sends == 0


async def test_a_blocking_call_says_what_to_call_instead(node):
    with entered(await node.scope()), pytest.raises(ConfigurationError, match="ainvoke"):
        chat_model("default")._generate([HumanMessage("hi")])


async def test_a_bound_tool_is_offered_and_asked_for(node, script):
    model = chat_model(script.model).bind_tools([look_up], tool_choice="look_up")
    with entered(await node.scope()):
        answer = await model.ainvoke("where is A-1?")

    assert answer.tool_calls == [{"name": "look_up", "args": {"order": "A-1"}, "id": "call_1", "type": "tool_call"}]
    [sent] = script.requests
    assert sent.tools[0]["function"]["name"] == "look_up"
    assert sent.tool_choice == "look_up"


async def test_what_a_tool_said_is_told_to_the_model(node, script):
    asked = AIMessage("", tool_calls=[{"name": "look_up", "args": {"order": "A-1"}, "id": "call_1"}])
    with entered(await node.scope()):
        answer = await chat_model(script.model).ainvoke(
            [HumanMessage("where?"), asked, ToolMessage("on its way", tool_call_id="call_1")]
        )

    assert answer.content == "It says: on its way"
    _, told, result = script.requests[0].messages
    assert told["tool_calls"][0]["function"] == {"name": "look_up", "arguments": '{"order": "A-1"}'}
    assert result["tool_call_id"] == "call_1"


async def test_a_structured_answer_is_asked_for_as_a_tool(node):
    decided = ScriptedReply(
        tool_calls=(ToolCallRequest(id="call_1", name="Decision", args={"amount": 12, "why": "late"}),)
    )
    with scripted("structured", decided) as script, entered(await node.scope()):
        model = chat_model(script.model).with_structured_output(Decision)
        decision = await model.ainvoke("how much?")

    assert decision == Decision(amount=12, why="late")


async def test_an_agents_response_format_becomes_the_requests_schema_and_is_repaired(node):
    with scripted("formatted", "twelve", {"amount": 12, "why": "late"}) as script, entered(await node.scope()):
        agent = create_agent(chat_model(script.model), tools=[], response_format=ProviderStrategy(Decision))
        result = await agent.ainvoke({"messages": [HumanMessage("how much?")]})

    assert result["structured_response"] == Decision(amount=12, why="late")
    assert script.requests[0].response_schema is not None
    assert script.sends == 2


@pytest.mark.parametrize("settings", [{"top_p": 0.5}, {"stop": ["\n"]}, {"response_format": {"type": "json_object"}}])
async def test_a_setting_that_the_gateway_does_not_carry_is_refused_rather_than_dropped(node, settings):
    with scripted("settings", "hi") as script, entered(await node.scope()), pytest.raises(InvalidRequest):
        await chat_model(script.model).ainvoke("hi", **settings)

    assert script.sends == 0
