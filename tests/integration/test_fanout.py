"""Specialists side by side: ids, shares and deadlines of their own; failures, pauses and re-runs."""

import asyncio
import functools
import operator
from typing import Annotated, Any

import pytest
from governing import ACME, Desk, raising
from langgraph.func import task
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from typing_extensions import TypedDict

from holdfast.contracts.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    ErrorType,
    InvalidRequest,
    LeaseLost,
    NotGoverned,
)
from holdfast.contracts.limits import Limits
from holdfast.contracts.scope import current_scope
from holdfast.contracts.verdicts import Autonomy
from holdfast.gateway.toolset import tool
from holdfast.graphs.govern import govern
from holdfast.nodes.context import RunContext, current
from holdfast.nodes.fanout import Specialist, fan_out


class State(TypedDict, total=False):
    x: str
    log: Annotated[list[Any], operator.add]


sent: list[str] = []


@tool(effect="read")
async def look(order: str) -> dict:
    """Look at an order."""
    sent.append(order)
    return {"seen": order}


@tool(effect="external")
async def pay(order: str) -> dict:
    """Pay."""
    sent.append(f"paid {order}")
    return {"paid": order}


@pytest.fixture(autouse=True)
def nothing_sent():
    sent.clear()


def graph_of(node):
    builder = StateGraph(State, context_schema=RunContext).add_node("node", node).add_edge(START, "node")
    return govern(builder.compile(), name="team", tools=[look, pay])


async def looking() -> Any:
    return (await current().tools.call("look", {"order": "A"})).output


async def test_each_has_a_name_an_id_a_budget_and_a_deadline_of_its_own():
    async def report() -> tuple:
        scope = current_scope("a test")
        return scope.agent_name, scope.budgets, scope.limits.max_tool_calls, current().deadline.remaining_seconds()

    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        team = [
            Specialist("one", report, 0.5, 10.0),
            Specialist("two", report, 0.25),
            Specialist("three", report, 0.25, 1e6),
        ]
        outcomes = await runtime.context.fan_out(team, limit=3)
        return {"log": [(one.name, one.status, one.task_id, one.value) for one in outcomes]}

    limits = Limits(deadline_seconds=100, max_tool_calls=40)
    attempt = await Desk().start(graph_of(node), {"x": "1"}, limits=limits)
    with raising(attempt):
        log = attempt.output["log"]
    assert [(name, status) for name, status, *_ in log] == [(name, "completed") for name in ("one", "two", "three")]
    assert [value[0] for *_, value in log] == ["one", "two", "three"]
    assert len({task_id for _, _, task_id, _ in log}) == 3
    assert len({value[1][0] for *_, value in log}) == 3
    assert {value[1][1:] for *_, value in log} == {attempt.session.budgets}
    assert [value[2] for *_, value in log] == [20, 10, 10]
    first, second, third = [value[3] for *_, value in log]
    assert first <= 10 < min(second, third)
    assert max(second, third) <= 100, "never later than the supervisor's"


async def test_the_same_call_of_two_specialists_is_two_calls():
    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        await runtime.context.fan_out([Specialist("one", looking, 0.5), Specialist("two", looking, 0.5)], limit=2)
        await runtime.context.fan_out([Specialist("one", looking, 0.5)], limit=1)
        return {}

    attempt = await Desk().start(graph_of(node), {"x": "1"})
    with raising(attempt):
        assert sent == ["A"] * 3
    assert [call.agent_name for call in await attempt.calls()] == ["one", "two", "one"]


async def test_no_more_than_the_limit_work_at_once():
    at_work, most = 0, 0

    async def work() -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.01)
        at_work -= 1

    async def node(state: State) -> dict:
        await fan_out([Specialist(str(number), work, 0.1) for number in range(6)], limit=2)
        return {}

    with raising(await Desk().start(graph_of(node), {"x": "1"})):
        assert most == 2


async def test_share_is_kept_when_the_node_runs_again_and_stops_its_specialist_alone():
    tries = []

    async def greedy() -> None:
        for number in range(3):
            await current().tools.call("look", {"order": str(number)})

    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        team = [Specialist("greedy", greedy, 0.2), Specialist("modest", looking, 0.5)]
        outcomes = await runtime.context.fan_out(team, limit=2, allow_partial=True)
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("the first attempt ends here")
        return {"log": [(one.name, one.status, one.error and one.error.error_type) for one in outcomes]}

    attempt = await Desk().start(graph_of(node), {"x": "1"}, limits=Limits(max_tool_calls=10))
    await attempt.go(None)
    with raising(attempt):
        assert attempt.output["log"] == [
            ("greedy", "failed", ErrorType.BUDGET_EXCEEDED),
            ("modest", "completed", None),
        ]
    assert sorted(sent) == ["0", "1", "A"]
    state = await attempt.desk.store.ledger.state(ACME, attempt.session.budgets[0])
    assert state.spent.tool_calls == 3


async def test_first_failure_is_raised_as_it_is_and_stops_the_others():
    stopped = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def fail() -> None:
        raise KeyError("x")

    async def node(state: State) -> dict:
        await fan_out([Specialist("slow", slow, 0.5), Specialist("fail", fail, 0.5)], limit=2)
        return {}

    attempt = await Desk().start(graph_of(node), {"x": "1"})
    with pytest.raises(KeyError), raising(attempt):
        pass
    assert stopped.is_set()


async def test_specialist_past_its_deadline_fails_with_its_error_type():
    async def slow() -> None:
        await asyncio.Event().wait()

    async def node(state: State) -> dict:
        [outcome] = await fan_out([Specialist("slow", slow, 0.5, 0.05)], limit=1, allow_partial=True)
        return {"log": [outcome.status, outcome.error.error_type, outcome.error.metadata["class"]]}

    attempt = await Desk().start(graph_of(node), {"x": "1"})
    with raising(attempt):
        assert attempt.output["log"] == ["failed", ErrorType.TIMEOUT, DeadlineExceeded.__name__]


async def test_lost_lease_is_never_a_partial_result():
    async def lose() -> None:
        raise LeaseLost("gone")

    async def node(state: State) -> dict:
        await fan_out([Specialist("lose", lose, 0.5)], limit=1, allow_partial=True)
        return {}

    attempt = await Desk().start(graph_of(node), {"x": "1"})
    with pytest.raises(LeaseLost), raising(attempt):
        pass


async def test_pause_of_one_lets_the_others_finish_and_nothing_is_done_twice():
    async def paying() -> Any:
        return (await current().tools.call("pay", {"order": "A"})).output

    async def node(state: State) -> dict:
        outcomes = await fan_out([Specialist("payer", paying, 0.5), Specialist("looker", looking, 0.5)], limit=2)
        return {"log": [outcome.value for outcome in outcomes]}

    attempt = await Desk().start(graph_of(node), {"x": "1"})
    with raising(attempt):
        [question] = await attempt.inbox()
    assert sent == ["A"]
    await attempt.rest()
    await attempt.decide(question, "approve")
    attempt = await attempt.resume()
    with raising(attempt):
        assert attempt.output["log"] == [{"paid": "A"}, {"seen": "A"}]
    assert sent == ["A", "paid A"]


async def test_subgraph_called_by_a_specialist_spends_the_specialists_share():
    seen = []

    async def inner(state: State) -> dict:
        seen.append((current_scope("a test").agent_name, current_scope("a test").budgets))
        return {}

    below = StateGraph(State).add_node("inner", inner).add_edge(START, "inner").compile()

    async def node(state: State) -> dict:
        async def ask_below() -> None:
            await below.ainvoke({"x": "1"})

        await fan_out([Specialist("expert", ask_below, 0.5)], limit=1)
        return {}

    attempt = await Desk().start(graph_of(node), {"x": "1"})
    with raising(attempt):
        [(agent, budgets)] = seen
    assert agent == "expert"
    assert budgets[1:] == attempt.session.budgets


async def test_misuse_is_refused():
    async def node(state: State) -> dict:
        for wrong in (
            fan_out([Specialist("a", looking, 0.5), Specialist("a", looking, 0.5)], limit=1),
            fan_out([], limit=0),
            fan_out([Specialist("a", looking, 1.5)], limit=1),
        ):
            with pytest.raises(InvalidRequest):
                await wrong
        return {}

    with raising(await Desk().start(graph_of(node), {"x": "1"})):
        pass
    with pytest.raises(NotGoverned):
        await fan_out([], limit=1)


async def test_budget_that_is_spent_ends_the_node_unless_partial_results_are_allowed():
    async def node(state: State) -> dict:
        await fan_out([Specialist("one", looking, 0.5)], limit=1)
        return {}

    attempt = await Desk().start(graph_of(node), {"x": "1"}, limits=Limits(max_tool_calls=0))
    with pytest.raises(BudgetExceeded), raising(attempt):
        pass


async def test_budget_spent_by_a_langchain_tool_call_is_the_specialists_failure():
    async def as_an_agent_would() -> Any:
        call = {"type": "tool_call", "id": "1", "name": "look", "args": {"order": "A"}}
        return await look.ainvoke(call)

    async def node(state: State) -> dict:
        [outcome] = await fan_out([Specialist("one", as_an_agent_would, 0.5)], limit=1, allow_partial=True)
        return {"log": [outcome.error.error_type]}

    attempt = await Desk().start(graph_of(node), {"x": "1"}, limits=Limits(max_tool_calls=0))
    with raising(attempt):
        assert attempt.output["log"] == [ErrorType.BUDGET_EXCEEDED]


async def test_graphs_and_tasks_called_by_specialists_are_found_again_in_whatever_order_they_come():
    done: list[str] = []
    gate = asyncio.Event()

    @tool(effect="write")
    async def act(name: str) -> str:
        """Act."""
        done.append(name)
        return name

    async def acting(state: State) -> dict:
        return {"log": [(await current().tools.call("act", {"name": state["x"]})).output["result"]]}

    inner = StateGraph(State).add_node("acting", acting).add_edge(START, "acting").compile()

    @task
    async def acting_too(name: str) -> Any:
        return (await current().tools.call("act", {"name": name})).output["result"]

    async def node(state: State) -> dict:
        async def work(name: str) -> list[Any]:
            if name == "slow" and not gate.is_set():
                await gate.wait()  # the quick one is first this time, and not the next
            found = (await inner.ainvoke({"x": name}))["log"] + [await acting_too(f"{name} too")]
            gate.set()
            return found

        specialists = [Specialist(name, functools.partial(work, name), budget_share=0.5) for name in ("slow", "quick")]
        outcomes = await current().fan_out(specialists, limit=2)
        return {"log": [*[outcome.value for outcome in outcomes], interrupt("and now?")]}

    graph = govern(
        StateGraph(State).add_node("node", node).add_edge(START, "node").compile(), name="acted", tools=[act]
    )
    attempt = await Desk(autonomy=Autonomy.AUTONOMOUS).start(graph, {"x": "", "log": []})
    [question] = await attempt.inbox()
    await attempt.rest()
    await attempt.decide(question, "respond", value="go on")
    last = await attempt.resume()
    with raising(last):
        assert last.output["log"] == [["slow", "slow too"], ["quick", "quick too"], "go on"]
    assert sorted(done) == ["quick", "quick too", "slow", "slow too"]
