"""Every kind of node that LangGraph has, under our terms, and the graph otherwise as it was."""

import asyncio
import operator
from typing import Annotated, Literal

import pytest
from governing import Desk, raising
from langchain_core.runnables import RunnableLambda
from langgraph.errors import NodeError
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import CachePolicy, Command, RetryPolicy, Send
from typing_extensions import TypedDict

from holdfast.contracts.calls import CallIdentity
from holdfast.contracts.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    InvalidRequest,
    InvariantViolated,
    LeaseLost,
    NotGoverned,
    RunCancelled,
    TransientDependency,
)
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits
from holdfast.contracts.scope import current_scope, scope_here
from holdfast.graphs.govern import assert_governed, govern
from holdfast.nodes.context import RunContext, current


class State(TypedDict, total=False):
    x: str
    log: Annotated[list[str], operator.add]


class Narrow(TypedDict):
    x: str


def scoped(name: str) -> dict[str, list[str]]:
    """What each node writes: its name, if it has a scope of its own."""
    scope = scope_here()
    return {"log": [name if scope is not None and scope.node == name else f"{name} WITHOUT SCOPE"]}


def plain(state: Narrow) -> dict:
    assert sorted(state) == ["x"]
    return scoped("plain")


async def native(state: State, runtime: Runtime[RunContext]) -> dict:
    assert runtime.context.run.tenant_id == "acme"
    return scoped("native")


async def timed(state: State) -> dict:
    return scoped("timed")


async def router(state: State) -> Command[Literal["inner_graph"]]:
    return Command(goto="inner_graph", update=scoped("router"))


async def inner_node(state: State) -> dict:
    return scoped("inner_node")


async def in_body_node(state: State) -> dict:
    return scoped("in_body_node")


async def failing(state: State) -> dict:
    scoped("failing")
    raise ValueError("as the author meant it")


async def rescue(state: State, error: NodeError) -> dict:
    assert isinstance(error.error, ValueError)
    return {"log": ["rescue"] if scope_here() is not None else ["rescue WITHOUT SCOPE"]}


async def deferred(state: State) -> dict:
    return scoped("deferred")


async def sent(state: State) -> dict:
    return scoped("sent")


@task
async def subtask(value: str) -> str:
    return f"{value} in {current_scope('a test').locate().task_id[:4]}"


async def with_task(state: State) -> dict:
    own = current_scope("a test").locate().task_id[:4]
    answer = await subtask("task")
    assert own not in answer, "a call inside a @task belongs to another task"
    return scoped("with_task")


def everything():
    inner = StateGraph(State).add_node("inner_node", inner_node).add_edge(START, "inner_node").compile(name="inner")
    in_body = StateGraph(State).add_node("in_body_node", in_body_node).add_edge(START, "in_body_node").compile(name="b")

    async def calls_graph(state: State) -> dict:
        await in_body.ainvoke({"x": state["x"]})
        return scoped("calls_graph")

    builder = StateGraph(State, context_schema=RunContext)
    builder.add_node("plain", plain)
    builder.add_node("native", native)
    builder.add_node("timed", timed, timeout=5.0, retry_policy=RetryPolicy(max_attempts=2))
    builder.add_node("router", router)
    builder.add_node("inner_graph", inner)
    builder.add_node("calls_graph", calls_graph)
    builder.add_node("lambda", RunnableLambda(lambda state: scoped("lambda")))
    builder.add_node("failing", failing, error_handler=rescue)
    builder.add_node("with_task", with_task)
    builder.add_node("sent", sent)
    builder.add_node("deferred", deferred, defer=True)
    for source, target in (
        (START, "plain"),
        ("plain", "native"),
        ("native", "timed"),
        ("timed", "router"),
        ("inner_graph", "calls_graph"),
        ("calls_graph", "lambda"),
        ("lambda", "failing"),
        ("lambda", "with_task"),
        ("sent", "deferred"),
        ("deferred", END),
    ):
        builder.add_edge(source, target)
    builder.add_conditional_edges("with_task", lambda state: [Send("sent", state), Send("sent", state)], ["sent"])
    return builder.compile(name="everything")


NODES = {
    "plain", "native", "timed", "router", "inner_node", "calls_graph", "in_body_node", "lambda", "failing",
    "with_task", "sent", "deferred",
}  # fmt: skip


async def test_every_kind_of_node_runs_with_a_scope_and_is_recorded():
    attempt = await Desk().start(govern(everything(), name="everything"), {"x": "1"})
    with raising(attempt):
        started = await attempt.nodes()
    assert not [line for line in attempt.output["log"] if "WITHOUT" in line]
    assert set(started) - {name for name in started if "rescue" in name or "error" in name} == NODES
    assert started.count("sent") == 2
    assert "inner_graph" not in started, "a node that is a graph is no step: its own nodes are"
    assert await attempt.nodes(EventKind.NODE_FAILED) == ["failing"]


async def test_drawing_and_schemas_stay_as_they_were():
    graph = everything()

    def face():
        return (
            [graph.get_graph(xray=deep).draw_mermaid() for deep in (False, True)],
            graph.get_input_jsonschema(),
            graph.get_output_jsonschema(),
            graph.get_context_jsonschema(),
            [name for name, _ in graph.get_subgraphs(recurse=True)],
        )

    before = face()
    assert govern(graph, name="everything") is graph
    assert face() == before


async def test_governing_twice_changes_nothing_but_the_terms():
    graph = govern(everything(), name="once")
    bodies = {name: node.bound for name, node in graph.nodes.items()}
    version = graph.governance.version
    govern(graph, name="twice")
    assert {name: node.bound for name, node in graph.nodes.items()} == bodies
    assert (graph.governance.name, graph.governance.version) == ("twice", version)
    assert type(graph).__name__ == "GovernedCompiledStateGraph"


async def test_copies_and_configured_graphs_stay_governed():
    graph = govern(everything(), name="everything")
    for other in (graph.copy(), graph.with_config({"tags": ["t"]})):
        assert_governed(other)
        assert other.governance is graph.governance


async def test_node_that_is_exchanged_later_is_found():
    graph = govern(everything(), name="everything")
    graph.nodes["native"] = graph.nodes["native"].copy({"bound": RunnableLambda(lambda state: state)})
    with pytest.raises(InvariantViolated, match="node 'native'"):
        assert_governed(graph)


async def test_what_is_not_compiled_is_refused():
    with pytest.raises(InvalidRequest, match=r"builder\.compile"):
        govern(StateGraph(State))  # type: ignore[type-var]
    with pytest.raises(InvalidRequest, match="not int"):
        govern(3)  # type: ignore[type-var]


async def test_outside_any_run_a_governed_graph_refuses_and_says_what_to_call():
    graph = govern(everything(), name="everything")
    with pytest.raises(NotGoverned, match=r"Runtime\.start"):
        await graph.ainvoke({"x": "1"})
    with pytest.raises(NotGoverned, match=r"Runtime\.start"):
        graph.invoke({"x": "1"})
    with pytest.raises(NotGoverned, match=r"Runtime\.start"):
        await graph.nodes["native"].bound.ainvoke(
            {"x": "1"}, {"configurable": {"__pregel_task_id": "t", "__pregel_runtime": Runtime()}}
        )


def one(node, **options):
    builder = StateGraph(State, context_schema=RunContext)
    builder.add_node("node", node, **options)
    builder.add_edge(START, "node")
    return builder


async def test_functional_graph_is_governed_too():
    @entrypoint()
    async def work(value: str) -> str:
        assert current().run.tenant_id == "acme"
        return await subtask(value)

    attempt = await Desk().start(govern(work, name="functional"), "hello")
    with raising(attempt):
        assert attempt.output.startswith("hello in ")
        assert await attempt.nodes() == ["work"]


async def test_missing_context_is_filled_with_defaults_and_a_given_one_is_kept():
    seen = []

    class Own(RunContext):
        tone: str = "kind"

    async def node(state: State, runtime: Runtime[Own]) -> dict:
        seen.append(runtime.context.tone)
        return {}

    builder = StateGraph(State, context_schema=Own).add_node("node", node).add_edge(START, "node")
    graph, desk = govern(builder.compile(), name="own"), Desk()
    for context in (None, {"tone": "dry"}, Own(tone="warm")):
        run = await desk.admit(graph, {"x": "1"})
        with raising(await desk.drive(graph, run, {"x": "1"}, context=context)):
            pass
    assert seen == ["kind", "dry", "warm"]


async def test_context_of_another_kind_is_left_alone():
    seen = []

    async def node(state: State, runtime: Runtime) -> dict:
        seen.append(runtime.context)
        return {"log": [current().tenant.tenant_id]}

    graph = govern(StateGraph(State).add_node("node", node).add_edge(START, "node").compile(), name="foreign")
    attempt = await Desk().start(graph, {"x": "1"})
    with raising(attempt):
        assert (seen, attempt.output["log"]) == ([None], ["acme"])


async def test_steps_are_counted_and_limited():
    graph = govern(everything(), name="everything")
    attempt = await Desk().start(graph, {"x": "1"}, limits=Limits(max_steps=3))
    with pytest.raises(BudgetExceeded, match="steps"), raising(attempt):
        pass
    assert await attempt.nodes() == ["plain", "native", "timed"]


async def test_refused_budget_is_not_tried_again_by_a_retry_policy():
    tries = []

    async def node(state: State) -> dict:
        tries.append(1)
        raise BudgetExceeded("spent")

    graph = govern(one(node, retry_policy=RetryPolicy(max_attempts=4, initial_interval=0.001)).compile(), name="retry")
    attempt = await Desk().start(graph, {"x": "1"})
    with pytest.raises(BudgetExceeded), raising(attempt):
        pass
    assert len(tries) == 1


async def test_retryable_failures_of_ours_and_the_authors_own_are_tried_again():
    tries = []

    async def node(state: State) -> dict:
        tries.append(1)
        raise [TransientDependency("later"), KeyError("the author wants this again")][min(len(tries) - 1, 1)]

    policy = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False, retry_on=KeyError)
    attempt = await Desk().start(govern(one(node, retry_policy=policy).compile(), name="retry"), {"x": "1"})
    with pytest.raises(KeyError), raising(attempt):
        pass
    assert len(tries) == 3


async def test_foreign_failure_keeps_its_class_and_is_classified_in_the_event():
    async def node(state: State) -> dict:
        raise ConnectionResetError("gone")

    attempt = await Desk().start(govern(one(node).compile(), name="fails"), {"x": "1"})
    with pytest.raises(ConnectionResetError), raising(attempt):
        pass
    [failed] = await attempt.events(EventKind.NODE_FAILED)
    assert failed.payload == {"error_type": "transient_dependency", "exception": "builtins.ConnectionResetError"}
    assert attempt.session.step_of(attempt.error) == "node"


async def test_group_with_one_of_ours_fails_as_that_one():
    async def node(state: State) -> dict:
        raise ExceptionGroup("several", [ValueError("x"), BudgetExceeded("spent")])

    attempt = await Desk().start(govern(one(node).compile(), name="fails"), {"x": "1"})
    with pytest.raises(BudgetExceeded), raising(attempt):
        pass


async def test_failed_conditional_edge_is_routed_again_on_resume():
    calls = []

    def route(state: State) -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("the router's model is away")
        return "after"

    builder = one(timed)
    builder.add_node("after", deferred)
    builder.add_conditional_edges("node", route, ["after"])
    attempt = await Desk().start(govern(builder.compile(), name="routes"), {"x": "1"})
    assert isinstance(attempt.error, ConnectionError)
    await attempt.go(None)
    with raising(attempt):
        assert (await attempt.bound.aget_state(attempt.config)).next == ()
    assert "after" in await attempt.nodes(EventKind.NODE_COMPLETED)


async def test_edge_to_nowhere_is_not_taken_for_an_end():
    builder = one(timed)
    builder.add_conditional_edges("node", lambda state: None, ["node"])
    attempt = await Desk().start(govern(builder.compile(), name="routes"), {"x": "1"})
    assert attempt.error is not None
    assert (await attempt.bound.aget_state(attempt.config)).next == ("node",)


async def test_call_in_a_conditional_edge_is_another_call_than_its_nodes():
    sites = []

    async def node(state: State) -> dict:
        sites.append(current_scope("a test").identify("model", "m", "d"))
        return {}

    def route(state: State) -> str:
        sites.append(current_scope("a test").identify("model", "m", "d"))
        return END

    builder = one(node)
    builder.add_conditional_edges("node", route)
    with raising(await Desk().start(govern(builder.compile(), name="routes"), {"x": "1"})):
        pass
    first, second = sites
    assert isinstance(first, CallIdentity)
    assert first.site.task_id == second.site.task_id
    assert first.key != second.key


async def test_deadline_ends_a_node_at_work_and_waits_for_its_cleanup():
    cleaned = asyncio.Event()

    async def node(state: State) -> dict:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()
        return {}

    attempt = await Desk().start(
        govern(one(node).compile(), name="slow"), {"x": "1"}, limits=Limits(deadline_seconds=0.1)
    )
    with pytest.raises(DeadlineExceeded), raising(attempt):
        pass
    assert cleaned.is_set()


async def test_node_that_will_not_stop_is_left_behind_and_can_do_nothing():
    release, refused = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def node(state: State) -> dict:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        try:
            current_scope("a late call")
        except NotGoverned as error:
            refused.set_result(error)
        return {}

    desk = Desk(cleanup_seconds=0.05)
    attempt = await desk.start(
        govern(one(node).compile(), name="slow"), {"x": "1"}, limits=Limits(deadline_seconds=0.1)
    )
    with pytest.raises(DeadlineExceeded), raising(attempt):
        pass
    release.set()
    assert "after node 'node' had ended" in str(await refused)


async def test_past_deadline_starts_no_node():
    attempt = await Desk().start(
        govern(one(timed).compile(), name="late"), {"x": "1"}, limits=Limits(deadline_seconds=0)
    )
    with pytest.raises(DeadlineExceeded), raising(attempt):
        pass
    assert await attempt.nodes() == []


async def test_cancelled_run_starts_no_further_node():
    desk = Desk()

    async def node(state: State) -> dict:
        scope = current_scope("a test")
        from governing import ACME, DANA

        await desk.store.runs.request_cancel(DANA, ACME, scope.run.run_id, reason="enough")
        return {}

    builder = one(node)
    builder.add_node("after", deferred)
    builder.add_edge("node", "after")
    attempt = await desk.start(govern(builder.compile(), name="stops"), {"x": "1"})
    with pytest.raises(RunCancelled), raising(attempt):
        pass
    assert "after" not in await attempt.nodes(EventKind.NODE_COMPLETED)


async def test_lost_lease_starts_no_node():
    desk, graph = Desk(), govern(one(timed).compile(), name="lost")
    run = await desk.admit(graph, {"x": "1"})
    attempt = await desk.drive(graph, run, {"x": "1"}, still_ours=lambda: False)
    with pytest.raises(LeaseLost), raising(attempt):
        pass
    assert await attempt.nodes() == []


async def test_task_that_outlives_its_node_is_refused():
    late = []

    async def leak() -> None:
        await gate.wait()
        try:
            current_scope("a leaked call")
        except NotGoverned as error:
            late.append(error)

    gate = asyncio.Event()

    async def node(state: State) -> dict:
        late.append(asyncio.ensure_future(leak()))
        return {}

    with raising(await Desk().start(govern(one(node).compile(), name="leaks"), {"x": "1"})):
        pass
    gate.set()
    await late[0]
    assert "had ended" in str(late[1])


async def test_node_places_bound_how_many_work_at_once_and_nesting_does_not_deadlock():
    at_work, most = 0, 0

    async def work(state: State) -> dict:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.01)
        at_work -= 1
        return {}

    inner = StateGraph(State).add_node("work", work).add_edge(START, "work").compile()

    async def outer(state: State) -> dict:
        await inner.ainvoke({"x": "1"})
        return {}

    builder = StateGraph(State).add_node("outer", outer)
    builder.add_conditional_edges(START, lambda state: [Send("outer", state)] * 6, ["outer"])
    with raising(await Desk(node_slots=2).start(govern(builder.compile(), name="wide"), {"x": "1"})):
        pass
    assert most == 2


async def test_graph_that_caches_its_nodes_is_refused():
    graph = one(timed, cache_policy=CachePolicy()).compile()
    with pytest.raises(InvalidRequest, match="knows no tenant"):
        govern(graph, name="cached")
