"""A tool that a person must see: an interrupt, a row in the inbox, and the inbox's answer to this very call."""

import asyncio
import operator
from functools import partial
from typing import Annotated, Any

from governing import Desk, raising
from langgraph.errors import GraphInterrupt
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from typing_extensions import TypedDict

from holdfast.checkpoints.saver import saver_for
from holdfast.checkpoints.store import PostgresStore
from holdfast.contracts.approvals import ApprovalKind
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.runs import RunStatus
from holdfast.gateway.toolset import tool
from holdfast.graphs.govern import govern
from holdfast.nodes.context import RunContext, current
from holdfast.runtime.entropy import SystemIds


class State(TypedDict, total=False):
    x: str
    log: Annotated[list[Any], operator.add]


class Till:
    """What was really paid."""

    def __init__(self) -> None:
        self.paid: list[str] = []

        @tool(effect="external")
        async def pay(order: str) -> dict:
            """Pay for an order."""
            self.paid.append(order)
            return {"paid": order}

        @tool(effect="read")
        async def look(order: str) -> dict:
            """Look at an order."""
            return {"seen": order}

        self.tools = [pay, look]

    def graph(self, node):
        builder = StateGraph(State, context_schema=RunContext).add_node("node", node).add_edge(START, "node")
        return govern(builder.compile(), name="till", tools=self.tools)


async def answered(attempt, *decisions):
    """The attempt after each question in turn was decided."""
    for decision, parts in decisions:
        with raising(attempt):
            [question] = await attempt.inbox()
        await attempt.rest()
        await attempt.decide(question, decision, **parts)
        attempt = await attempt.resume()
    return attempt


async def pay_once(state: State, runtime: Runtime[RunContext]) -> dict:
    result = await runtime.context.tools.call("pay", {"order": "A"})
    return {"log": [result.status, result.output, result.error_message]}


async def test_question_is_in_the_inbox_in_langchains_form_before_anything_is_done():
    till = Till()
    attempt = await Desk().start(till.graph(pay_once), {"x": "1"})
    with raising(attempt):
        [question] = await attempt.inbox()
    assert till.paid == []
    assert question.kind is ApprovalKind.TOOL
    assert (question.tool_name, question.args) == ("pay", {"order": "A"})
    assert question.interrupt_id == attempt.interrupts[0].id
    [action] = question.payload["action_requests"]
    assert (action["name"], action["args"]) == ("pay", {"order": "A"})
    [review] = question.payload["review_configs"]
    assert review == {"action_name": "pay", "allowed_decisions": ["approve", "edit", "reject", "respond"]}
    assert await attempt.nodes(EventKind.NODE_INTERRUPTED) == ["node"]
    assert await attempt.nodes(EventKind.NODE_FAILED) == []


async def test_each_decision_has_its_effect():
    for decision, parts, paid, status, output in (
        ("approve", {}, ["A"], "ok", {"paid": "A"}),
        ("edit", {"args": {"order": "B"}}, ["B"], "ok", {"paid": "B"}),
        ("reject", {"message": "too much"}, [], "rejected", None),
        ("respond", {"value": {"paid": "by hand"}}, [], "rejected", {"paid": "by hand"}),
    ):
        till = Till()
        attempt = await answered(await Desk().start(till.graph(pay_once), {"x": "1"}), (decision, parts))
        with raising(attempt):
            assert attempt.output["log"][:2] == [status, output]
        assert till.paid == paid
        assert await attempt.inbox() == []


async def test_answers_of_tools_and_of_plain_interrupts_in_one_node_do_not_mix():
    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        tools = runtime.context.tools
        first = await tools.call("pay", {"order": "A"})
        colour = interrupt("which colour?")
        await tools.call("look", {"order": "A"})
        second = await tools.call("pay", {"order": "B"})
        size = interrupt("which size?")
        return {"log": [first.output, colour, second.error_message, size]}

    till = Till()
    attempt = await answered(
        await Desk().start(till.graph(node), {"x": "1"}),
        ("approve", {}),
        ("respond", {"value": "red"}),
        ("reject", {"message": "no"}),
        ("respond", {"value": "large"}),
    )
    with raising(attempt):
        assert attempt.output["log"] == [{"paid": "A"}, "red", "pay was not called. no", "large"]
    assert till.paid == ["A"]


async def test_calls_that_ask_side_by_side_each_get_their_own_answer():
    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        tools = runtime.context.tools
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(tools.call("pay", {"order": order})) for order in ("A", "B", "C")]
        return {"log": [task.result().output or task.result().status for task in tasks]}

    till, desk = Till(), Desk()
    attempt = await desk.start(till.graph(node), {"x": "1"})
    for _ in range(3):
        with raising(attempt):
            [question] = await attempt.inbox()
        await attempt.rest()
        await attempt.decide(question, "reject" if question.args == {"order": "B"} else "approve")
        attempt = await attempt.resume()
    with raising(attempt):
        assert attempt.output["log"] == [{"paid": "A"}, "rejected", {"paid": "C"}]
    assert sorted(till.paid) == ["A", "C"]


async def test_decision_counts_even_when_the_next_attempt_is_entered_without_it():
    # After a crash the engine goes on with no answers at all: the inbox has them.
    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        result = await runtime.context.tools.call("pay", {"order": "A"})
        return {"log": [result.output, interrupt("sure?")]}

    till = Till()
    attempt = await Desk().start(till.graph(node), {"x": "1"})
    [question] = await attempt.inbox()
    await attempt.rest()
    await attempt.decide(question, "approve")
    run = await attempt.desk.claimed(attempt.graph)
    following = await attempt.desk.drive(attempt.graph, run, None)
    with raising(following):
        [asked] = following.interrupts
    assert (asked.value, till.paid) == ("sure?", ["A"])
    following = await answered(following, ("respond", {"value": "yes"}))
    with raising(following):
        assert following.output["log"] == [{"paid": "A"}, "yes"]
    assert till.paid == ["A"]


async def test_plain_interrupt_of_anyones_node_is_in_the_inbox_once_however_deep():
    async def inner(state: State) -> dict:
        return {"log": [interrupt({"pick": 1})]}

    below = StateGraph(State).add_node("inner", inner).add_edge(START, "inner").compile()
    builder = StateGraph(State).add_node("below", below).add_edge(START, "below")
    attempt = await Desk().start(govern(builder.compile(), name="deep"), {"x": "1"})
    with raising(attempt):
        [question] = await attempt.inbox()
    assert (question.kind, question.payload, question.node) == (ApprovalKind.QUESTION, {"pick": 1}, "inner")
    attempt = await answered(attempt, ("respond", {"value": "one"}))
    with raising(attempt):
        assert attempt.output["log"] == ["one"]


async def test_failure_beside_a_pause_is_a_failure():
    async def fail() -> None:
        raise ValueError("broken")

    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        try:
            await runtime.context.tools.call("pay", {"order": "A"})
        except GraphInterrupt as pause:
            raise ExceptionGroup("both", [pause, ValueError("broken")]) from None
        return {}

    attempt = await Desk().start(Till().graph(node), {"x": "1"})
    assert isinstance(attempt.error, ExceptionGroup)
    assert await attempt.nodes(EventKind.NODE_FAILED) == ["node"]


async def test_approval_of_one_run_does_not_pay_for_the_next_on_its_thread():
    till, desk = Till(), Desk()
    graph = till.graph(pay_once)
    first = await answered(await desk.start(graph, {"x": "1"}), ("approve", {}))
    with raising(first):
        assert till.paid == ["A"]
    ended = EventDraft(kind=EventKind.RUN_COMPLETED)
    await desk.store.runs.finish(first.session.owner, RunStatus.COMPLETED, output=None, cause=None, event=ended)
    run = await desk.admit(graph, {"x": "1"}, thread=first.run.thread_key)
    second = await desk.drive(graph, run, {"x": "1"})
    with raising(second):
        assert (len(await second.inbox()), till.paid) == (1, ["A"])
    assert second.run.thread_id == first.run.thread_id


async def test_tool_that_pauses_in_its_body_after_its_approval_goes_on_with_the_answer():
    done = []

    @tool(effect="external")
    async def pay(order: str) -> dict:
        """Pay, once the till is open."""
        till = interrupt("is the till open?")
        done.append(order)
        return {"paid": order, "till": till}

    builder = StateGraph(State, context_schema=RunContext).add_node("node", pay_once).add_edge(START, "node")
    graph = govern(builder.compile(), name="till", tools=[pay])
    attempt = await answered(await Desk().start(graph, {"x": "1"}), ("approve", {}), ("respond", {"value": "yes"}))
    with raising(attempt):
        assert attempt.output["log"][:2] == ["ok", {"paid": "A", "till": "yes"}]
    assert done == ["A"]


async def test_answers_do_not_mix_on_postgres_either(database):
    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        first = await runtime.context.tools.call("pay", {"order": "A"})
        colour = interrupt("which colour?")
        second = await runtime.context.tools.call("pay", {"order": "B"})
        return {"log": [first.output, colour, second.output]}

    till = Till()
    desk = Desk(store=PostgresStore(database, SystemIds()), saver_of=partial(saver_for, database))
    attempt = await answered(
        await desk.start(till.graph(node), {"x": "1"}),
        ("approve", {}),
        ("respond", {"value": "red"}),
        ("edit", {"args": {"order": "C"}}),
    )
    with raising(attempt):
        assert attempt.output["log"] == [{"paid": "A"}, "red", {"paid": "C"}]
    assert till.paid == ["A", "C"]


async def test_call_in_a_conditional_edge_is_asked_about_wherever_its_graph_is():
    async def node(state: State) -> dict:
        return {"log": ["node"]}

    async def paying(state: State) -> str:
        await current().tools.call("pay", {"order": "A"})
        return "__end__"

    def edged() -> StateGraph:
        builder = StateGraph(State).add_node("node", node).add_edge(START, "node")
        return builder.add_conditional_edges("node", paying, ["__end__"])

    inner = edged().compile()

    async def calling(state: State, runtime: Runtime[RunContext]) -> dict:
        await runtime.context.tools.call("look", {"order": "A"})
        return {"log": (await inner.ainvoke({"x": "1"}))["log"]}

    for builder in (edged(), StateGraph(State, context_schema=RunContext).add_node(calling).add_edge(START, "calling")):
        till = Till()
        graph = govern(builder.compile(), name="edged", tools=till.tools)
        attempt = await answered(await Desk().start(graph, {"x": "1"}), ("approve", {}))
        with raising(attempt):
            assert attempt.output["log"] == ["node"]
        assert till.paid == ["A"]


async def test_answers_that_tools_bodies_have_used_are_not_those_of_the_next_question():
    till = Till()

    @tool(effect="write", idempotent=True)
    async def consult(about: str) -> str:
        """Ask a person, and pay."""
        answer = interrupt(f"{about}?")
        await current().tools.call("pay", {"order": about})
        return f"{about}: {answer}"

    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        tools = runtime.context.tools
        first = (await tools.call("consult", {"about": "colour"})).text
        second = interrupt("size?")
        third, fourth = await asyncio.gather(
            *(tools.call("consult", {"about": about}) for about in ("shape", "weight"))
        )
        return {"log": [first, second, third.text, fourth.text, interrupt("and?")]}

    till.tools.append(consult)
    attempt = await Desk().start(till.graph(node), {"x": "1"})
    asked = []
    while questions := await attempt.inbox():
        await attempt.rest()
        for question in questions:
            asked.append(question.payload if question.tool_name is None else question.args["order"])
            parts = {"value": f"for {question.payload}"} if question.tool_name is None else {}
            await attempt.decide(question, "respond" if parts else "approve", **parts)
        attempt = await attempt.resume()
    with raising(attempt):
        assert attempt.output["log"] == [
            "colour: for colour?",
            "for size?",
            "shape: for shape?",
            "weight: for weight?",
            "for and?",
        ]
    assert sorted(till.paid) == ["colour", "shape", "weight"]
    assert sorted(asked) == ["and?", "colour", "colour?", "shape", "shape?", "size?", "weight", "weight?"]


async def test_calls_that_ask_inside_of_calls_side_by_side_do_not_wait_for_each_other():
    till = Till()

    @tool(effect="write", idempotent=True, timeout_seconds=5.0)
    async def buy(order: str) -> str:
        """Pay for what was ordered, and for its parcel beside it."""
        paid = [current().tools.call("pay", {"order": f"{order}{what}"}) for what in ("", "'s parcel")]
        return ", ".join([result.output["paid"] for result in await asyncio.gather(*paid)])

    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        bought = await asyncio.gather(*(runtime.context.tools.call("buy", {"order": order}) for order in "AB"))
        return {"log": [result.text for result in bought]}

    till.tools.append(buy)
    attempt = await Desk().start(till.graph(node), {"x": "1"})
    while questions := await attempt.inbox():
        with raising(attempt):
            assert [call.sends for call in await attempt.calls() if call.identity.name == "buy"] != []
        await attempt.rest()
        for question in questions:
            await attempt.decide(question, "approve")
        attempt = await attempt.resume()
    with raising(attempt):
        assert attempt.output["log"] == ["A, A's parcel", "B, B's parcel"]
    assert sorted(till.paid) == ["A", "A's parcel", "B", "B's parcel"]
    assert [event for event in await attempt.events() if event.kind == EventKind.TOOL_RETRIED] == []
