"""A node that runs again and asks for something else than it did: what was done is neither forgotten nor done over."""

import asyncio
import operator
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from governing import Attempt, Desk, raising
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from typing_extensions import TypedDict

from holdfast.contracts.approvals import ApprovalKind
from holdfast.contracts.errors import ReplayMismatch
from holdfast.contracts.verdicts import Autonomy
from holdfast.gateway.toolset import tool
from holdfast.graphs.govern import govern
from holdfast.nodes.context import RunContext, current


class State(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


class World:
    """What was really paid and looked at, and what the node asks for in each of its runs."""

    def __init__(self, *asks: Callable[[Any], Any]) -> None:
        self.paid: list[str] = []
        self._asks = list(asks)

        @tool(effect="external")
        async def pay(order: str) -> dict[str, str]:
            """Pay for an order."""
            self.paid.append(order)
            return {"paid": order}

        @tool(effect="read")
        async def look(order: str) -> dict[str, str]:
            """Look at an order."""
            return {"seen": order}

        self.tools = [pay, look]

        async def node(state: State, runtime: Runtime[RunContext]) -> State:
            ask = self._asks.pop(0) if len(self._asks) > 1 else self._asks[0]
            return {"log": [await ask(runtime.context.tools)]}

        builder = StateGraph(State, context_schema=RunContext).add_node("node", node).add_edge(START, "node")
        self.graph = govern(builder.compile(), name="world", tools=self.tools)


@pytest.fixture
def desk() -> Desk:
    return Desk(autonomy=Autonomy.AUTONOMOUS)


def paying(order: str, *, then_ask: bool = False) -> Callable[[Any], Any]:
    async def ask(tools: Any) -> Any:
        result = await tools.call("pay", {"order": order})
        return interrupt("and now?") if then_ask else result.output

    return ask


async def looking(tools: Any) -> Any:
    return (await tools.call("look", {"order": "A"})).output


async def nothing(tools: Any) -> Any:
    return "nothing"


async def decided(attempt: Attempt, decision: str, **parts: Any) -> Attempt:
    [question] = await attempt.inbox()
    await attempt.rest()
    await attempt.decide(question, decision, **parts)
    return await attempt.resume()


async def test_an_effect_with_other_arguments_is_stopped_before_it_is_sent(desk: Desk):
    world = World(paying("A", then_ask=True), paying("B"))
    again = await decided(await desk.start(world.graph, {"log": []}), "respond", value="go on")
    assert world.paid == ["A"]
    [question] = await again.inbox()
    assert (question.kind, question.tool_name, question.args) == (ApprovalKind.MISMATCH, "pay", {"order": "A"})
    assert question.allowed == ("approve", "reject")


async def test_what_a_person_lets_stand_stands_and_the_node_goes_on(desk: Desk):
    world = World(paying("A", then_ask=True), paying("B"))
    again = await decided(await desk.start(world.graph, {"log": []}), "respond", value="go on")
    last = await decided(again, "approve")
    with raising(last):
        assert last.output == {"log": [{"paid": "B"}]}
    assert world.paid == ["A", "B"]


async def test_what_a_person_does_not_let_stand_ends_the_node_and_nothing_is_sent(desk: Desk):
    world = World(paying("A", then_ask=True), paying("B"))
    again = await decided(await desk.start(world.graph, {"log": []}), "respond", value="go on")
    last = await decided(again, "reject")
    with pytest.raises(ReplayMismatch, match="no longer asks for pay"), raising(last):
        pass
    assert world.paid == ["A"]


@pytest.mark.parametrize("otherwise", [looking, nothing])
async def test_an_effect_that_is_not_asked_for_at_all_is_noticed_when_the_node_ends(desk: Desk, otherwise: Any):
    world = World(paying("A", then_ask=True), otherwise)
    again = await decided(await desk.start(world.graph, {"log": []}), "respond", value="go on")
    [question] = await again.inbox()
    assert question.kind is ApprovalKind.MISMATCH
    last = await decided(again, "approve")
    with raising(last):
        assert len(last.output["log"]) == 1
    assert world.paid == ["A"]


async def test_reads_and_models_may_change_and_the_same_effect_is_answered_from_the_journal(desk: Desk):
    async def looks_first(tools: Any) -> Any:
        await tools.call("look", {"order": "A"})
        return await paying("A", then_ask=True)(tools)

    world = World(looks_first, paying("A", then_ask=True))
    last = await decided(await desk.start(world.graph, {"log": []}), "respond", value="yes")
    with raising(last):
        assert last.output == {"log": ["yes"]}
    assert world.paid == ["A"]


async def test_questions_after_a_mismatch_get_their_own_answers(desk: Desk):
    async def pays_a_and_dies(tools: Any) -> Any:
        await tools.call("pay", {"order": "A"})
        raise RuntimeError("the process died here")

    async def pays_b_and_asks(tools: Any) -> Any:
        paid = (await tools.call("pay", {"order": "B"})).output
        return [paid, interrupt("which colour?")]

    world = World(pays_a_and_dies, pays_b_and_asks)
    again = await desk.start(world.graph, {"log": []})
    await again.go(None)
    coloured = await decided(again, "approve")
    last = await decided(coloured, "respond", value="red")
    with raising(last):
        assert last.output == {"log": [[{"paid": "B"}, "red"]]}
    assert world.paid == ["A", "B"]


async def test_calls_side_by_side_are_not_missed_before_they_have_had_their_turn(desk: Desk):
    def paying_beside(*orders: str) -> Callable[[Any], Any]:
        async def pay(tools: Any, order: str) -> Any:
            for _ in range(orders.index(order)):
                await asyncio.sleep(0)  # each comes to its call a little later than the one before it
            return (await tools.call("pay", {"order": order})).output

        async def ask(tools: Any) -> Any:
            await tools.call("pay", {"order": "first"})
            return await asyncio.gather(*(pay(tools, order) for order in orders))

        return ask

    async def pays_one_and_dies(tools: Any) -> Any:
        await paying_beside("C")(tools)  # and was about to pay for A and B
        raise RuntimeError("the process died here")

    world = World(pays_one_and_dies, paying_beside("A", "B", "C"))
    again = await desk.start(world.graph, {"log": []})
    await again.go(None)
    assert await again.inbox() == []
    with raising(again):
        assert again.output == {"log": [[{"paid": "A"}, {"paid": "B"}, {"paid": "C"}]]}
    assert sorted(world.paid) == ["A", "B", "C", "first"]


async def test_edge_of_a_graph_that_a_node_calls_does_not_answer_for_what_the_node_does(desk: Desk):
    world = World(looking)

    async def asks(state: State) -> State:
        return {"log": [interrupt("which colour?")]}

    builder = StateGraph(State).add_node("asks", asks).add_node("end", asks).add_edge(START, "asks")
    colours = builder.add_conditional_edges("asks", lambda _: "__end__", ["end", "__end__"]).compile()

    async def node(state: State, runtime: Runtime[RunContext]) -> State:
        paid = (await runtime.context.tools.call("pay", {"order": "A"})).output
        return {"log": [paid, (await colours.ainvoke({"log": []}))["log"]]}

    outer = StateGraph(State, context_schema=RunContext).add_node("node", node).add_edge(START, "node")
    graph = govern(outer.compile(), name="outer", tools=world.tools)
    last = await decided(await desk.start(graph, {"log": []}), "respond", value="red")
    assert await last.inbox() == []
    with raising(last):
        assert last.output == {"log": [{"paid": "A"}, ["red"]]}
    assert world.paid == ["A"]


async def test_what_a_tools_body_did_is_not_missed_where_the_tools_call_is_answered(desk: Desk):
    world = World(looking)

    @tool(effect="write", idempotent=True)
    async def buy(order: str) -> dict[str, str]:
        """Pay for an order, and for what goes with it."""
        for each in (order, f"{order}'s parcel"):
            await current().tools.call("pay", {"order": each})
        return {"bought": order}

    @tool(effect="read")
    async def shop(order: str) -> dict[str, str]:
        """Let somebody buy it."""
        return (await current().tools.call("buy", {"order": order})).output

    async def node(state: State, runtime: Runtime[RunContext]) -> State:
        bought = (await runtime.context.tools.call("shop", {"order": "A"})).output
        return {"log": [bought, interrupt("and now?")]}

    builder = StateGraph(State, context_schema=RunContext).add_node("node", node).add_edge(START, "node")
    graph = govern(builder.compile(), name="nested", tools=[*world.tools, buy, shop])
    last = await decided(await desk.start(graph, {"log": []}), "respond", value="go on")
    assert await last.inbox() == []
    with raising(last):
        assert last.output == {"log": [{"bought": "A"}, "go on"]}
    assert world.paid == ["A", "A's parcel"]
