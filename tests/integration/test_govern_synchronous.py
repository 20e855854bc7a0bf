"""Synchronous nodes: off the loop, bridged back to it for what they start, and stopped with their node."""

import asyncio
import operator
import threading
from typing import Annotated

import pytest
from governing import Desk, raising
from langgraph.config import get_config
from langgraph.graph import START, StateGraph
from langgraph.types import Send, interrupt
from typing_extensions import TypedDict

from holdfast.contracts.errors import ConfigurationError, DeadlineExceeded, NotGoverned
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits
from holdfast.contracts.scope import current_scope
from holdfast.graphs.govern import govern


class State(TypedDict, total=False):
    x: str
    log: Annotated[list[str], operator.add]


def graph_of(node, **edges):
    return StateGraph(State).add_node("node", node).add_edge(START, "node")


async def test_sync_node_works_off_the_loop():
    def node(state: State) -> dict:
        return {"log": [str(threading.current_thread() is threading.main_thread())]}

    attempt = await Desk().start(govern(graph_of(node).compile(), name="sync"), {"x": "1"})
    with raising(attempt):
        assert attempt.output["log"] == ["False"]


async def test_subgraph_invoked_by_a_sync_node_is_governed_and_belongs_to_its_parent():
    namespaces = []

    def inner(state: State) -> dict:
        namespaces.append(current_scope("a test").locate().checkpoint_ns)
        assert get_config()["configurable"]["checkpoint_ns"] == namespaces[-1]
        return {"log": ["inner"]}

    below = graph_of(inner).compile(name="below")

    def outer(state: State) -> dict:
        return {"log": ["outer", *below.invoke({"x": "1"})["log"]]}

    attempt = await Desk().start(govern(graph_of(outer).compile(), name="sync"), {"x": "1"})
    with raising(attempt):
        assert attempt.output["log"] == ["outer", "inner"]
    assert [event.payload["graph"] for event in await attempt.events(EventKind.NODE_STARTED)] == ["LangGraph", "below"]
    assert namespaces[0].startswith("node:")
    assert "|" in namespaces[0]


async def test_chunks_of_a_subgraph_reach_a_sync_node_one_by_one():
    below = graph_of(lambda state: {"log": ["inner"]}).compile()

    def outer(state: State) -> dict:
        return {"log": [str(chunk) for chunk in below.stream({"x": "1"}, stream_mode="updates")]}

    attempt = await Desk().start(govern(graph_of(outer).compile(), name="sync"), {"x": "1"})
    with raising(attempt):
        assert attempt.output["log"] == ["{'node': {'log': ['inner']}}"]


async def test_three_deep_and_eight_wide_do_not_wait_for_each_other():
    together = threading.Barrier(8, timeout=20)

    def leaf(state: State) -> dict:
        together.wait()
        return {"log": ["leaf"]}

    third = graph_of(leaf).compile()

    def second_node(state: State) -> dict:
        return {"log": third.invoke({"x": "1"})["log"]}

    second = graph_of(second_node).compile()

    def first(state: State) -> dict:
        return {"log": second.invoke({"x": "1"})["log"]}

    builder = StateGraph(State).add_node("first", first)
    builder.add_conditional_edges(START, lambda state: [Send("first", state)] * 8, ["first"])
    attempt = await Desk().start(govern(builder.compile(), name="deep"), {"x": "1"})
    with raising(attempt):
        assert attempt.output["log"] == ["leaf"] * 8


async def test_pause_crosses_from_a_subgraph_through_a_sync_node_and_back():
    def inner(state: State) -> dict:
        return {"log": [interrupt("which?")]}

    below = graph_of(inner).compile()

    def outer(state: State) -> dict:
        return {"log": below.invoke({"x": "1"})["log"]}

    attempt = await Desk().start(govern(graph_of(outer).compile(), name="sync"), {"x": "1"})
    with raising(attempt):
        [question] = await attempt.inbox()
    await attempt.rest()
    await attempt.decide(question, "respond", value="this one")
    attempt = await attempt.resume()
    with raising(attempt):
        assert attempt.output["log"] == ["this one"]


async def test_failure_of_a_subgraph_reaches_the_sync_node_that_called_it():
    def inner(state: State) -> dict:
        raise KeyError("missing")

    below = graph_of(inner).compile()

    def outer(state: State) -> dict:
        try:
            below.invoke({"x": "1"})
        except KeyError as error:
            return {"log": [f"caught {error}"]}
        return {}

    attempt = await Desk().start(govern(graph_of(outer).compile(), name="sync"), {"x": "1"})
    with raising(attempt):
        assert attempt.output["log"] == ["caught 'missing'"]


async def test_sync_call_on_the_loops_own_thread_is_refused():
    below = graph_of(lambda state: {}).compile()

    async def outer(state: State) -> dict:
        below.invoke({"x": "1"})
        return {}

    attempt = await Desk().start(govern(graph_of(outer).compile(), name="sync"), {"x": "1"})
    with pytest.raises(ConfigurationError, match="await its asynchronous twin"), raising(attempt):
        pass


async def test_subgraph_of_a_sync_node_ends_with_the_nodes_deadline():
    stopped = asyncio.Event()

    async def inner(state: State) -> dict:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return {}

    below = graph_of(inner).compile()

    def outer(state: State) -> dict:
        return below.invoke({"x": "1"})

    attempt = await Desk().start(
        govern(graph_of(outer).compile(), name="sync"), {"x": "1"}, limits=Limits(deadline_seconds=0.2)
    )
    with pytest.raises(DeadlineExceeded), raising(attempt):
        pass
    assert stopped.is_set()


async def test_thread_left_behind_by_its_deadline_is_refused_when_it_asks_for_more():
    release, done, refused = threading.Event(), asyncio.Event(), []
    loop = asyncio.get_running_loop()
    below = graph_of(lambda state: {}).compile()

    def outer(state: State) -> dict:
        release.wait(20)
        try:
            below.invoke({"x": "1"})
            current_scope("a late call")
        except (NotGoverned, DeadlineExceeded) as error:
            refused.append(error)
        loop.call_soon_threadsafe(done.set)
        return {}

    attempt = await Desk().start(
        govern(graph_of(outer).compile(), name="sync"), {"x": "1"}, limits=Limits(deadline_seconds=0.1)
    )
    with pytest.raises(DeadlineExceeded), raising(attempt):
        pass
    release.set()
    async with asyncio.timeout(20):
        await done.wait()
    assert refused
