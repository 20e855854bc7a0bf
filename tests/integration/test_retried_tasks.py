"""What LangGraph tries again in the same attempt: what a node or a `@task` has done is answered, and not done again."""

import asyncio
import operator
from typing import Annotated, Any

import pytest
from governing import Desk, raising
from langchain_core.tools import StructuredTool
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy, interrupt
from typing_extensions import TypedDict

from holdfast.contracts.approvals import ApprovalKind
from holdfast.contracts.verdicts import Autonomy
from holdfast.gateway.toolset import tool
from holdfast.graphs.govern import govern
from holdfast.nodes.context import current
from holdfast.nodes.fanout import Specialist

TWICE = RetryPolicy(max_attempts=2, initial_interval=0.001, jitter=False, retry_on=ConnectionError)


class Shop:
    """What was really paid."""

    def __init__(self) -> None:
        self.paid: list[str] = []

        @tool(effect="write")
        async def pay(order: str) -> dict[str, str]:
            """Pay for an order."""
            self.paid.append(order)
            return {"paid": order}

        self.pay = pay

    def graph(self, work: Any) -> Any:
        model = "scripted:governing_script:answer"
        return govern(entrypoint()(work), name="shop", tools=[self.pay], default_model=model)


def failing_once() -> Any:
    """Raises when it is called for the first time."""
    left = [ConnectionError("the line was cut")]

    def fail() -> None:
        if left:
            raise left.pop()

    return fail


@pytest.fixture
def desk() -> Desk:
    return Desk(autonomy=Autonomy.AUTONOMOUS)


async def test_what_a_task_did_before_it_failed_is_not_done_again_when_it_is_retried(desk: Desk):
    shop, fail = Shop(), failing_once()

    @task(retry_policy=TWICE)
    async def buy(order: str) -> list[Any]:
        said = (await current().models.call(f"buy {order}")).content
        paid = [(await current().tools.call("pay", {"order": order})).output for _ in range(2)]  # two of it
        fail()
        return [said, *paid]

    async def work(order: str) -> list[Any]:
        return await buy(order)

    attempt = await desk.start(shop.graph(work), "A")
    with raising(attempt):
        assert attempt.output == ["scripted", {"paid": "A"}, {"paid": "A"}]
    assert shop.paid == ["A", "A"]
    assert [(call.identity.kind, call.identity.occurrence, call.sends) for call in await attempt.calls()] == [
        ("model", 0, 1),
        ("tool", 0, 1),
        ("tool", 1, 1),
    ]


async def test_specialists_of_a_task_that_is_retried_have_their_shares_and_their_calls(desk: Desk):
    shop, fail = Shop(), failing_once()

    @task(retry_policy=TWICE)
    async def buy(order: str) -> list[Any]:
        async def buyer() -> Any:
            return (await current().tools.call("pay", {"order": order})).output

        outcomes = await current().fan_out([Specialist("buyer", buyer, budget_share=0.5)], limit=1)
        fail()
        return [outcome.value for outcome in outcomes]

    async def work(order: str) -> list[Any]:
        return await buy(order)

    attempt = await desk.start(shop.graph(work), "A")
    with raising(attempt):
        assert attempt.output == [{"paid": "A"}]
    assert shop.paid == ["A"]


async def test_task_that_is_retried_and_asks_for_something_else_is_stopped_before_it_does_it(desk: Desk):
    shop, orders = Shop(), iter(["A", "B"])

    @task(retry_policy=TWICE)
    async def buy() -> Any:
        order = next(orders)
        paid = (await current().tools.call("pay", {"order": order})).output
        if order == "A":
            raise ConnectionError("the line was cut")
        return paid

    async def work(_: str) -> Any:
        return await buy()

    attempt = await desk.start(shop.graph(work), "go")
    [question] = await attempt.inbox()
    assert (question.kind, question.args) == (ApprovalKind.MISMATCH, {"order": "A"})
    assert shop.paid == ["A"]


async def test_call_that_a_failed_task_left_behind_is_the_same_call_as_that_of_its_retry(desk: Desk):
    shop, left, go = Shop(), [], asyncio.Event()

    async def pay_later(order: str) -> Any:
        await go.wait()
        return (await current().tools.call("pay", {"order": order})).output

    @task(retry_policy=TWICE)
    async def buy(order: str) -> Any:
        if not left:
            left.append(asyncio.ensure_future(pay_later(order)))
            raise ConnectionError("the line was cut")
        go.set()
        return (await current().tools.call("pay", {"order": order})).output

    async def work(order: str) -> Any:
        return await buy(order)

    await desk.start(shop.graph(work), "A")
    await asyncio.wait(left)
    left[0].exception()
    assert shop.paid == ["A"]


async def test_answers_keep_their_places_when_a_task_with_a_question_is_retried(desk: Desk):
    shop, fail = Shop(), failing_once()

    @task(retry_policy=TWICE)
    async def buy(order: str) -> list[Any]:
        paid = (await current().tools.call("pay", {"order": order})).output
        colour = interrupt("which colour?")
        fail()
        return [paid, colour, (await current().tools.call("pay", {"order": colour})).output]

    async def work(order: str) -> list[Any]:
        return await buy(order)

    attempt = await desk.start(shop.graph(work), "A")
    [question] = await attempt.inbox()
    await attempt.rest()
    await attempt.decide(question, "respond", value="blue")
    last = await attempt.resume()
    with raising(last):
        assert last.output == [{"paid": "A"}, "blue", {"paid": "blue"}]
    assert shop.paid == ["A", "blue"]


async def test_graphs_and_tasks_that_a_retried_node_or_task_calls_are_not_run_again(desk: Desk):
    class State(TypedDict, total=False):
        order: str
        log: Annotated[list[Any], operator.add]

    async def pay(state: State) -> State:
        return {"log": [(await current().tools.call("pay", {"order": state["order"]})).output["paid"]]}

    inner = StateGraph(State).add_node("pay", pay).add_edge(START, "pay").compile()

    @task
    async def pay_too(order: str) -> str:
        return (await current().tools.call("pay", {"order": order})).output["paid"]

    async def all_of_it(order: str, fail: Any) -> list[str]:
        first, second = [(await inner.ainvoke({"order": f"{order}{n}"}))["log"] for n in (1, 2)]
        third = await pay_too(f"{order}3")
        fail()
        return [*first, *second, third]

    def as_node(fail: Any) -> Any:
        async def node(state: State) -> State:
            return {"log": await all_of_it(state["order"], fail)}

        return StateGraph(State).add_node("node", node, retry_policy=TWICE).add_edge(START, "node").compile()

    def as_task(fail: Any) -> Any:
        @task(retry_policy=TWICE)
        async def work(order: str) -> list[str]:
            return await all_of_it(order, fail)

        @entrypoint()
        async def entry(state: State) -> State:
            return {"log": await work(state["order"])}

        return entry

    def as_subgraph(fail: Any) -> Any:
        async def last(state: State) -> State:
            third = await pay_too(f"{state['order'][0]}3")
            fail()
            return {"log": [third]}

        below = StateGraph(State).add_node("one", pay).add_node("last", last).add_edge(START, "one")
        below.add_edge("one", "last")
        return (
            StateGraph(State).add_node("below", below.compile(), retry_policy=TWICE).add_edge(START, "below").compile()
        )

    for shape, order, paid in (
        (as_node, "A", ["A1", "A2", "A3"]),
        (as_task, "B", ["B1", "B2", "B3"]),
        (as_subgraph, "C1", ["C1", "C3"]),
    ):
        shop = Shop()
        graph = govern(shape(failing_once()), name=shape.__name__, tools=[shop.pay])
        attempt = await desk.start(graph, {"order": order, "log": []})
        with raising(attempt):
            assert attempt.output["log"] == paid
        assert shop.paid == paid


class Told(TypedDict, total=False):
    order: str
    log: Annotated[list[Any], operator.add]


async def test_what_a_tools_body_did_is_not_done_again_when_its_call_is_sent_again(desk: Desk):
    shop, fail = Shop(), failing_once()

    async def paying(state: Told) -> Told:
        return {"log": [(await current().tools.call("pay", {"order": state["order"]})).output["paid"]]}

    inner = StateGraph(Told).add_node("paying", paying).add_edge(START, "paying").compile()

    @tool(effect="write", idempotent=True)
    async def buy(order: str) -> list[Any]:
        """Pay for an order by oneself, and have somebody pay for what goes with it."""
        paid = (await current().tools.call("pay", {"order": order})).output["paid"]
        below = (await inner.ainvoke({"order": f"{order}'s parcel"}))["log"]
        said = (await current().models.call(f"bought {order}")).content
        fail()
        return [paid, *below, said]

    async def node(state: Told) -> Told:
        await current().tools.call("pay", {"order": state["order"]})  # another call than the one in the body
        return {"log": (await current().tools.call("buy", {"order": state["order"]})).output["result"]}

    builder = StateGraph(Told).add_node("node", node).add_edge(START, "node")
    graph = govern(
        builder.compile(), name="shop", tools=[shop.pay, buy], default_model="scripted:governing_script:answer"
    )
    attempt = await desk.start(graph, {"order": "A", "log": []})
    with raising(attempt):
        assert attempt.output["log"] == ["A", "A's parcel", "scripted"]
    assert shop.paid == ["A", "A", "A's parcel"]
    sends = {(call.identity.kind, call.identity.name): call.sends for call in await attempt.calls()}
    assert sends == {("tool", "pay"): 1, ("tool", "buy"): 2, ("model", "scripted:governing_script:answer"): 1}


async def test_what_a_langchain_tools_body_did_is_not_done_again_when_its_call_is_sent_again(desk: Desk):
    paid: list[str] = []
    pay = StructuredTool.from_function(lambda order: paid.append(order), name="pay", description="Pay for an order.")

    def paying(state: Told) -> Told:
        pay.invoke({"order": state["order"]})
        return {"log": [state["order"]]}

    inner = StateGraph(Told).add_node("paying", paying).add_edge(START, "paying").compile()

    def buying(fail: Any) -> StructuredTool:
        async def on_the_loop(order: str) -> Any:
            below = (await inner.ainvoke({"order": order}))["log"]
            fail()
            return below

        def in_a_thread(order: str) -> Any:
            below = inner.invoke({"order": order})["log"]
            fail()
            return below

        terms = {"effect": "write", "idempotent": True}
        return StructuredTool.from_function(
            in_a_thread, coroutine=on_the_loop, name="buy", description="Have somebody pay.", metadata=terms
        )

    async def awaited(state: Told) -> Told:
        return {"log": await buy.ainvoke({"order": state["order"]})}

    def called(state: Told) -> Told:
        return {"log": buy.invoke({"order": state["order"]})}

    for node in (awaited, called):
        paid.clear()
        buy = buying(failing_once())
        graph = govern(StateGraph(Told).add_node("node", node).add_edge(START, "node").compile(), name=node.__name__)
        attempt = await desk.start(graph, {"order": "A", "log": []})
        with raising(attempt):
            assert attempt.output["log"] == ["A"]
        assert paid == ["A"]


async def test_tools_and_specialists_of_a_node_with_a_timeout_may_call_graphs_and_tasks(desk: Desk):
    shop, fail = Shop(), failing_once()

    @task
    async def paying(order: str) -> str:
        return (await current().tools.call("pay", {"order": order})).output["paid"]  # type: ignore[no-any-return]

    @tool(effect="write", idempotent=True)
    async def buy(order: str) -> str:
        """Have somebody pay for an order."""
        paid = await paying(order)
        fail()
        return paid

    async def node(state: Told) -> Told:
        bought = (await current().tools.call("buy", {"order": "A"})).text
        [outcome] = await current().fan_out([Specialist("one", lambda: paying("B"), budget_share=0.5)], limit=1)
        return {"log": [bought, outcome.value, await paying("C")]}

    builder = StateGraph(Told).add_node("node", node, timeout=5.0).add_edge(START, "node")
    attempt = await desk.start(govern(builder.compile(), name="shop", tools=[shop.pay, buy]), {"order": "A"})
    with raising(attempt):
        assert attempt.output["log"] == ["A", "B", "C"]
    assert shop.paid == ["A", "B", "C"]


async def test_what_a_tools_body_leaves_behind_is_refused_once_the_tool_has_answered(desk: Desk):
    shop, left = Shop(), []

    @tool(effect="read")
    async def look(order: str) -> str:
        """Look, and leave a payment behind."""

        async def pay_later() -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await current().tools.call("pay", {"order": order})

        left.append(asyncio.ensure_future(pay_later()))
        return "seen"

    async def node(state: Told) -> Told:
        seen = (await current().tools.call("look", {"order": "A"})).text
        await asyncio.wait(left)
        return {"log": [seen, type(left[0].exception()).__name__]}

    builder = StateGraph(Told).add_node("node", node).add_edge(START, "node")
    attempt = await desk.start(govern(builder.compile(), name="shop", tools=[shop.pay, look]), {"order": "A"})
    with raising(attempt):
        assert attempt.output["log"][1] == "NotGoverned"
    assert shop.paid == []
