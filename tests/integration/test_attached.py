"""Runs that another engine hosts: a bare `graph.ainvoke` on a graph with the host's own checkpointer."""

import asyncio
import operator
from contextlib import contextmanager
from typing import Annotated, Any

import pytest
from governing import ACME, DANA, Desk
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import InvalidUpdateError
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from holdfast.checkpoints.store import PostgresStore
from holdfast.contracts.approvals import ApprovalStatus
from holdfast.contracts.errors import (
    BudgetExceeded,
    Conflict,
    ContentsPruned,
    NotGoverned,
    PolicyDenied,
    RunCancelled,
)
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import RunStatus
from holdfast.contracts.tenancy import RetentionTerms, Tenant
from holdfast.gateway.toolset import tool
from holdfast.graphs.govern import govern
from holdfast.nodes.context import RunContext, current
from holdfast.nodes.hosting import register_host, unregister_host
from holdfast.nodes.session import session_here
from holdfast.runtime.attached import AttachedTerms, Attachments
from holdfast.runtime.entropy import SystemIds
from holdfast.runtime.sessions import Doors, Gate


class State(TypedDict, total=False):
    x: str
    log: Annotated[list[Any], operator.add]


paid: list[str] = []


@tool(effect="external")
async def pay(order: str) -> dict:
    """Pay for an order."""
    paid.append(order)
    return {"paid": order}


@tool(effect="read")
async def look(order: str) -> dict:
    """Look."""
    return {"seen": order}


@pytest.fixture(autouse=True)
def nothing_paid():
    paid.clear()


def graph_of(node, saver=None, *, terms=None, **options):
    builder = StateGraph(State, context_schema=RunContext).add_node("node", node).add_edge(START, "node")
    compiled = builder.compile(checkpointer=saver, **options)
    return govern(compiled, **{"name": "hosted", "tools": [pay, look]} | (terms or {}))


async def paying(state: State, runtime: Runtime[RunContext]) -> dict:
    result = await runtime.context.tools.call("pay", {"order": "A"})
    return {"log": [result.status, result.output or result.error_message, interrupt("sure?")]}


class Host:
    """The runtime's attached host."""

    def __init__(self, store: PostgresStore, limits: Limits | None, roles: tuple[str, ...]) -> None:
        self.desk = Desk(store=store)
        self.principal = DANA.model_copy(update={"roles": roles})
        self.limits = limits

    async def opened(self) -> "Host":
        await self.desk.store.tenants.put(Tenant(tenant_id=ACME))
        desk = self.desk
        models, executor, version = desk.gate(())
        doors = Doors(
            store=desk.store,
            gate_for=lambda policies: Gate(models, executor, version),
            silent_gate_for=lambda store, policies: Gate(models, executor, version),
            clock=desk.clock,
            ids=desk.ids,
            autonomy=desk.autonomy,
            node_slots=8,
            cleanup_seconds=1.0,
        )
        terms = AttachedTerms(tenant_id=ACME, principal=self.principal, limits=self.limits)
        self.attachments = Attachments(doors=doors, terms=terms, worker_id="studio")
        return self

    @contextmanager
    def registered(self):
        register_host(self.attachments)
        try:
            yield
        finally:
            unregister_host(self.attachments)

    async def runs(self) -> list[Any]:
        return list(await self.desk.store.runs.find(ACME))

    async def inbox(self, run_id: str) -> list[Any]:
        return list(await self.desk.store.approvals.find(ACME, run_id=run_id, pending_only=False))


THREAD = {"configurable": {"thread_id": "t-1"}}


@pytest.fixture
def hosted(database):
    async def opened(limits: Limits | None = None, roles: tuple[str, ...] = ("approver",)) -> Host:
        return await Host(PostgresStore(database, SystemIds()), limits, roles).opened()

    return opened


async def test_bare_invocation_is_a_run_with_journal_and_events(hosted):
    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        return {"log": [(await runtime.context.tools.call("look", {"order": "A"})).output]}

    host = await hosted()
    with host.registered():
        result = await graph_of(node).ainvoke({"x": "1"})
    assert result["log"] == [{"seen": "A"}]
    [run] = await host.runs()
    assert (run.status, run.attached, run.graph_name) == (RunStatus.COMPLETED, True, "hosted")
    [call] = await host.desk.store.journal.of_run(ACME, run.run_id)
    assert call.status == "returned"
    assert session_here() is None


async def test_host_that_resumes_by_itself_is_recorded_as_deciding_and_goes_on_with_the_same_run(hosted):
    host, saver = await hosted(limits=Limits(max_tool_calls=1)), InMemorySaver()
    graph = graph_of(paying, saver)
    with host.registered():
        asked = await graph.ainvoke({"x": "1"}, THREAD)
        [run] = await host.runs()
        assert run.status is RunStatus.INTERRUPTED
        assert asked["__interrupt__"][0].value["action_requests"][0]["name"] == "pay"
        again = await graph.ainvoke(Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
        assert again["__interrupt__"][0].value == "sure?"
        done = await graph.ainvoke(Command(resume={again["__interrupt__"][0].id: "yes"}), THREAD)
    assert done["log"] == ["ok", {"paid": "A"}, "yes"]
    assert paid == ["A"]
    [run] = await host.runs()
    assert run.status is RunStatus.COMPLETED
    tool_approval, question = await host.inbox(run.run_id)
    assert (tool_approval.status, tool_approval.decided_by) == (ApprovalStatus.APPROVED, "dana")
    assert tool_approval.used_at is not None
    assert (question.status, question.decision["value"]) == (ApprovalStatus.RESPONDED, "yes")


def decided(kind: str, **parts: Any) -> dict[str, Any]:
    return {"decisions": [{"type": kind, **parts}]}


async def test_run_that_rests_is_gone_on_with_by_compatible_code_alone(hosted):
    async def asking(state: State) -> dict:
        return {"log": [interrupt("sure?")]}

    host, saver = await hosted(), InMemorySaver()
    with host.registered():
        asked = await graph_of(asking, saver, terms={"version": "2.0"}).ainvoke({"x": "1"}, THREAD)
        answer = Command(resume={asked["__interrupt__"][0].id: "yes"})
        for other in (
            {"version": "2.1"},
            {"version": "2.1", "compatible": ">=2.1"},
            {"name": "else", "version": "2.0"},
        ):
            with pytest.raises(Conflict, match=r"version '2\.0'.*compatible=…\), or cancel it"):
                await graph_of(asking, saver, terms=other).ainvoke(answer, THREAD)
        [run] = await host.runs()
        assert (run.status, run.attempt) == (RunStatus.INTERRUPTED, 1), "it rests as before"
        fit = graph_of(asking, saver, terms={"version": "2.1", "compatible": ">=2.0,<3"})
        assert (await fit.ainvoke(answer, THREAD))["log"] == ["yes"]
    [run] = await host.runs()
    assert (run.status, run.graph_version, run.attempt) == (RunStatus.COMPLETED, "2.0", 2)
    claimed = await host.desk.store.events.latest(ACME, run.run_id, EventKind.RUN_CLAIMED)
    assert claimed.payload["graph_version"] == "2.1"


async def test_each_answer_of_a_host_has_its_effect(hosted):
    host, graph = await hosted(), graph_of(paying, InMemorySaver())
    for answer, order, told in (
        (decided("edit", edited_action={"name": "pay", "args": {"order": "B"}}), ["B"], {"paid": "B"}),
        (decided("reject", message="no"), [], "pay was not called. no"),
        (decided("respond", message="done by hand"), [], {"result": "done by hand"}),
        ("go ahead", [], "is no decision"),
    ):
        paid.clear()
        thread = {"configurable": {"thread_id": str(told)}}
        with host.registered():
            await graph.ainvoke({"x": "1"}, thread)
            await graph.ainvoke(Command(resume=answer), thread)
            done = await graph.ainvoke(Command(resume="yes"), thread)
        assert paid == order
        assert done["log"][1] == told or told in done["log"][1]


async def test_host_whose_principal_may_not_decide_is_refused(hosted):
    host = await hosted(roles=("clerk",))
    graph = graph_of(paying, InMemorySaver())
    with host.registered():
        await graph.ainvoke({"x": "1"}, THREAD)
        with pytest.raises(PolicyDenied, match="may not decide"):
            await graph.ainvoke(Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    assert paid == []


async def test_budget_holds_and_ends_the_run_as_failed(hosted):
    host = await hosted(limits=Limits(max_tool_calls=0))

    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        await runtime.context.tools.call("look", {"order": "A"})
        return {}

    with host.registered(), pytest.raises(BudgetExceeded):
        await graph_of(node).ainvoke({"x": "1"})
    [run] = await host.runs()
    assert (run.status, run.cause.error_type) == (RunStatus.FAILED, "budget_exceeded")


async def test_breakpoint_of_the_hosts_rests_the_run(hosted):
    async def node(state: State) -> dict:
        return {"log": ["ran"]}

    host = await hosted()
    graph = graph_of(node, InMemorySaver())
    with host.registered():
        await graph.ainvoke({"x": "1"}, THREAD, interrupt_before=["node"])
        [run] = await host.runs()
        assert run.status is RunStatus.INTERRUPTED
        done = await graph.ainvoke(None, THREAD)
    assert done["log"] == ["ran"]
    [run] = await host.runs()
    assert run.status is RunStatus.COMPLETED


async def test_edit_of_a_threads_state_asks_conditional_edges_in_a_run_of_its_own(hosted):
    async def first(state: State) -> dict:
        return {"log": [interrupt("sure?")]}

    async def second(state: State) -> dict:
        return {"log": ["second"]}

    builder = StateGraph(State, context_schema=RunContext).add_node("first", first).add_node("second", second)
    builder.add_edge(START, "first").add_conditional_edges("first", lambda state: state["x"], {"on": "second"})
    graph = govern(builder.compile(checkpointer=InMemorySaver()), name="hosted")
    host = await hosted()
    with host.registered():
        await graph.ainvoke({"x": "on", "log": []}, THREAD)
        await graph.aupdate_state(THREAD, {"log": ["edited"]}, as_node="first")
        assert (await graph.aget_state(THREAD)).next == ("second",)
        edit, resting = await host.runs()
        assert (edit.status, resting.status) == (RunStatus.COMPLETED, RunStatus.INTERRUPTED)
        with pytest.raises(InvalidUpdateError):
            await graph.aupdate_state(THREAD, {"log": ["edited"]}, as_node="nobody")
        assert (await graph.ainvoke(None, THREAD))["log"] == ["edited", "second"]
    assert [run.status for run in await host.runs()] == [RunStatus.FAILED, RunStatus.COMPLETED, RunStatus.COMPLETED]
    with pytest.raises(NotGoverned, match="outside a governed run"):
        await graph.aupdate_state(THREAD, {"log": ["again"]}, as_node="first")


async def test_edit_whose_edge_is_cancelled_ends_its_run_as_cancelled(hosted):
    async def leads(state: State) -> str:
        session = session_here()
        session.cancellation.request(by="dana", reason="not today")
        session.cancellation.require_wanted(session.owner.run_id)
        return "second"

    builder = StateGraph(State).add_node("first", lambda state: {}).add_node("second", lambda state: {})
    builder.add_edge(START, "first").add_conditional_edges("first", leads, ["second"])
    graph = govern(builder.compile(checkpointer=InMemorySaver()), name="hosted")
    host = await hosted()
    with host.registered(), pytest.raises(RunCancelled, match="not today"):
        await graph.aupdate_state(THREAD, {"log": ["edited"]}, as_node="first")
    [run] = await host.runs()
    assert run.status is RunStatus.CANCELLED
    assert run.cause is not None
    assert "not today" in run.cause.message


async def test_every_way_of_streaming_is_an_attached_run_and_leaks_no_session(hosted):
    async def node(state: State) -> dict:
        assert session_here() is not None
        return {"log": ["ran"]}

    host, graph = await hosted(), graph_of(node)
    with host.registered():
        async for _ in graph.astream({"x": "1"}, stream_mode="updates"):
            assert session_here() is None
        events = [event async for event in graph.astream_events({"x": "1"}, version="v2")]
        assert events
        await graph.abatch([{"x": "1"}, {"x": "2"}])
    assert [run.status for run in await host.runs()] == [RunStatus.COMPLETED] * 4
    assert session_here() is None


async def test_stream_that_is_left_ends_its_run_as_cancelled(hosted):
    builder = StateGraph(State)
    for name in ("first", "second"):
        builder.add_node(name, lambda state: {"log": ["ran"]})
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    graph = govern(builder.compile(), name="hosted")
    host = await hosted()
    with host.registered():
        stream = graph.astream({"x": "1"}, stream_mode="updates")
        async for _ in stream:
            break
        await stream.aclose()
    [run] = await host.runs()
    assert run.status is RunStatus.CANCELLED
    started = await host.desk.store.events.read(ACME, run.run_id)
    assert [event.node for event in started if event.kind is EventKind.NODE_STARTED] == ["first"]


@pytest.mark.parametrize("answer", ["approve", "reject"])
async def test_node_whose_record_was_pruned_is_not_run_again_by_its_host(hosted, answer: str):
    async def node(state: State, runtime: Runtime[RunContext]) -> dict:
        result = await runtime.context.tools.call("pay", {"order": "A"})
        raise ValueError(result.status)

    host, graph = await hosted(), graph_of(node, InMemorySaver())
    store = host.desk.store
    with host.registered():
        await graph.ainvoke({"x": "1"}, THREAD)
        with pytest.raises(ValueError, match=r"ok|rejected"):
            await graph.ainvoke(Command(resume=decided(answer)), THREAD)
        await store.tenants.put(Tenant(tenant_id=ACME, retention=RetentionTerms(contents_days=0)))
        assert await store.retention.prune(ACME)
        before = list(paid)
        with pytest.raises(ContentsPruned, match=r"when it(s node)? runs again"):
            await graph.ainvoke(None, THREAD)
    assert paid == before
    again, first = await host.runs()
    assert (again.status, again.cause.metadata["class"]) == (RunStatus.FAILED, "ContentsPruned")
    assert again.cause.metadata["run_id"] == first.run_id


async def test_cancelled_invocation_ends_its_run_as_cancelled(hosted):
    started = asyncio.Event()

    async def node(state: State) -> dict:
        started.set()
        await asyncio.Event().wait()
        return {}

    host = await hosted()
    with host.registered():
        invocation = asyncio.ensure_future(graph_of(node).ainvoke({"x": "1"}))
        await started.wait()
        invocation.cancel()
        with pytest.raises(asyncio.CancelledError):
            await invocation
    [run] = await host.runs()
    assert run.status is RunStatus.CANCELLED


async def test_governed_graph_below_a_foreign_one_is_attached_by_itself_and_its_pause_goes_up(hosted):
    host = await hosted()
    inner = graph_of(paying)
    outer = StateGraph(State).add_node("inner", inner).add_edge(START, "inner").compile(checkpointer=InMemorySaver())
    with host.registered():
        asked = await outer.ainvoke({"x": "1"}, THREAD)
    assert asked["__interrupt__"][0].value["action_requests"][0]["name"] == "pay"
    [run] = await host.runs()
    assert run.status is RunStatus.INTERRUPTED


async def test_hosts_answer_is_found_where_a_tools_body_has_called_the_graph_that_asked(hosted):
    async def paying_below(state: State) -> dict:
        paying = [current().tools.call("pay", {"order": order}) for order in "AB"]
        return {"log": [result.status for result in await asyncio.gather(*paying)]}

    below = StateGraph(State).add_node("paying", paying_below).add_edge(START, "paying").compile()

    @tool(effect="write", idempotent=True)
    async def buy(order: str) -> str:
        """Have a graph pay that nobody has governed."""
        return str((await below.ainvoke({"x": order}))["log"])

    async def buying(state: State, runtime: Runtime[RunContext]) -> dict:
        return {"log": [(await runtime.context.tools.call("buy", {"order": "A"})).text]}

    host = await hosted()
    graph = graph_of(buying, InMemorySaver(), terms={"tools": [pay, buy]})
    with host.registered():
        asked = await graph.ainvoke({"x": "1"}, THREAD)
        for _ in "AB":
            answers = {question.id: {"decisions": [{"type": "approve"}]} for question in asked["__interrupt__"]}
            asked = await graph.ainvoke(Command(resume=answers), THREAD)
    assert asked["log"] == ["['ok', 'ok']"]
    assert sorted(paid) == ["A", "B"]


async def test_host_that_is_gone_opens_nothing(hosted):
    host = await hosted()
    with host.registered():
        pass
    with pytest.raises(NotGoverned, match="open_runtime"):
        await graph_of(paying).ainvoke({"x": "1"})
