"""Runs on threads: in order, apart by tenant, idempotent, blocking, synchronous, and where another engine hosts."""

import asyncio
import inspect
import operator
from typing import Annotated, Any

import pytest
from langchain_core.tools import tool as langchain_tool
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime as NodeRuntime
from offices import Office
from typing_extensions import TypedDict
from uuid_utils import uuid7

from holdfast import Limits, Principal, RunContext, RunStatus, govern, open_blocking_runtime, tool
from holdfast.contracts.errors import BudgetExceeded, Conflict, InvalidRequest, NotFound, NotGoverned
from holdfast.runtime.blocking import BlockingRuntime
from holdfast.runtime.runtime import Runtime
from holdfast.testing.scripted import scripted_by_message

IN_TIME = 20.0


class Talk(TypedDict, total=False):
    said: str
    log: Annotated[list[str], operator.add]


@tool(effect="read")
async def look(at: str) -> str:
    """Look at something."""
    return f"seen {at}"


def talk(name: str = "talk", **terms: Any) -> Any:
    async def note(state: Talk, runtime: NodeRuntime[RunContext]) -> Talk:
        result = await runtime.context.tools.call("look", {"at": state["said"]})
        return {"log": [result.text]}

    builder = StateGraph(Talk, context_schema=RunContext).add_node("note", note).add_edge(START, "note")
    return govern(builder.compile(), name=name, tools=[look], **terms)


async def test_runs_on_one_thread_are_executed_one_after_the_other_in_order(office: Office):
    under_way: list[str] = []
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def work(state: Talk) -> Talk:
        under_way.append(state["said"])
        assert len(under_way) == 1, "two runs of one thread are at work"
        entered.set()
        await go_on.wait()
        under_way.remove(state["said"])
        return {"log": [state["said"]]}

    graph = govern(StateGraph(Talk).add_node("work", work).add_edge(START, "work").compile(), name="slow")
    async with office.open() as runtime:
        runs = [await runtime.start(graph, {"said": said}, tenant="acme", thread="one") for said in ("first", "second")]
        await asyncio.wait_for(entered.wait(), IN_TIME)
        assert [await run.status() for run in runs] == [RunStatus.RUNNING, RunStatus.QUEUED]
        go_on.set()
        results = [await run.result(IN_TIME) for run in runs]
        assert (await runtime.state("one", tenant="acme"))["log"] == ["first", "second"]
    assert [result.output["log"] for result in results] == [["first"], ["first", "second"]]
    assert results[0].thread_id == results[1].thread_id


async def test_tenants_with_the_same_thread_key_have_nothing_in_common(office: Office):
    async with office.open() as runtime:
        ours = await runtime.start(talk(), {"said": "ours"}, tenant="acme", thread="same")
        theirs = await runtime.start("talk", {"said": "theirs"}, tenant="bolt", thread="same")
        results = [await ours.result(IN_TIME), await theirs.result(IN_TIME)]
        assert [run.run_id for run in await runtime.runs(tenant="acme")] == [ours.id]
        assert [run.run_id for run in await runtime.runs(tenant="bolt", thread="same")] == [theirs.id]
        for look_in in (runtime.run, runtime.show, runtime.events, runtime.wait):
            with pytest.raises(NotFound):
                await look_in(ours.id, tenant="bolt")
        with pytest.raises(NotFound):
            await runtime.cancel(ours.id, tenant="bolt", by="mallory")
        with pytest.raises(NotFound):
            await runtime.cancel(ours.id, tenant="acme", by="mallory")
        with pytest.raises(NotFound):
            await runtime.start("talk", {"said": "x"}, tenant="acme", user="mallory")
    assert [result.output["log"] for result in results] == [["seen ours"], ["seen theirs"]]
    assert results[0].thread_id != results[1].thread_id


async def test_run_id_makes_a_request_the_same_request(office: Office):
    run_id = str(uuid7())
    async with office.open() as runtime:
        first = await runtime.start(talk(), {"said": "once"}, tenant="acme", run_id=run_id)
        await first.result(IN_TIME)
        again = await runtime.start("talk", {"said": "once"}, tenant="acme", run_id=run_id)
        assert (again.id, await again.status()) == (first.id, RunStatus.COMPLETED)
        with pytest.raises(Conflict):
            await runtime.start("talk", {"said": "something else"}, tenant="acme", run_id=run_id)
        with pytest.raises(InvalidRequest, match="not the id of a run"):
            await runtime.start("talk", {"said": "once"}, tenant="acme", run_id="mine")
        assert len(await runtime.runs(tenant="acme")) == 1
        assert (await again.result(IN_TIME)).usage.tool_calls == 1


def test_blocking_runtime_can_all_that_the_runtime_can(office: Office):
    for_servers = {"serves", "hand_back", "lost_worker"}
    for name in {name for name in vars(Runtime) if not name.startswith("_")} - for_servers:
        its, ours = (list(inspect.signature(getattr(each, name)).parameters) for each in (Runtime, BlockingRuntime))
        assert its == ours, name
    ada = Principal(user_id="ada", tenants=("acme",), roles=("operator", "admin"))
    with open_blocking_runtime(office.settings()) as runtime:
        run = runtime.start(talk(), {"said": "a"}, tenant="acme", thread="t")
        first = run.result(timeout=IN_TIME)
        assert runtime.run(run.id, tenant="acme").result(timeout=IN_TIME) == first
        assert runtime.show(run.id, tenant="acme").run.status is RunStatus.COMPLETED
        assert runtime.state("t", tenant="acme")["log"] == ["seen a"]
        assert runtime.verify_events(run.id, tenant="acme").ok
        assert len(runtime.events(run.id, tenant="acme")) == runtime.events(run.id, tenant="acme")[-1].seq
        assert [*runtime.follow(run.id, tenant="acme")] == runtime.events(run.id, tenant="acme")
        for event in runtime.follow(run.id, tenant="acme"):
            assert event.seq == 1
            break
        assert [found.ok for found in runtime.verify_all_events(tenant="acme")] == [True]
        assert runtime.replay(run.id, tenant="acme", by=ada).same
        [newest, *_] = runtime.history("t", tenant="acme", by=ada)
        fork = runtime.fork("t", tenant="acme", by=ada, at=newest.checkpoint_id, thread="u")
        assert fork.result(timeout=IN_TIME).status is RunStatus.COMPLETED
        with pytest.raises(Conflict, match="completed"):
            runtime.resume(run.id, tenant="acme", by=ada)
        assert runtime.hold(run.id, tenant="acme", by=ada).legal_hold
        assert runtime.lift(run.id, tenant="acme", by=ada).legal_hold is None


def test_blocking_runtime_starts_decides_and_waits_without_a_loop(office: Office):
    @tool(effect="external")
    def send(to: str) -> str:
        """Send."""
        return f"sent to {to}"

    async def ask(state: Talk, runtime: NodeRuntime[RunContext]) -> Talk:
        return {"log": [(await runtime.context.tools.call("send", {"to": state["said"]})).text]}

    builder = StateGraph(Talk, context_schema=RunContext).add_node("ask", ask).add_edge(START, "ask")
    graph = govern(builder.compile(), name="sender", tools=[send])
    with open_blocking_runtime(office.settings()) as runtime:
        run = runtime.start(graph, {"said": "sam"}, tenant="acme", thread="t")
        [question] = run.result(IN_TIME).approvals
        assert [asked.id for asked in runtime.approvals(tenant="acme", thread="t")] == [question.id]
        runtime.decide(question.id, "approve", by="dana")
        assert run.result(IN_TIME).output["log"] == ["sent to sam"]
        assert [each.status for each in runtime.runs(tenant="acme")] == [RunStatus.COMPLETED]
        with pytest.raises(Conflict):
            runtime.cancel(run.id, tenant="acme", by="dana")


async def test_synchronous_nodes_and_the_graphs_that_they_invoke_are_governed(office: Office):
    @langchain_tool
    def double(number: int) -> int:
        """Twice the number."""
        return 2 * number

    def inner(state: Talk) -> Talk:
        return {"log": [str(double.invoke({"number": 4}))]}

    below = StateGraph(Talk).add_node("inner", inner).add_edge(START, "inner").compile()

    def outer(state: Talk) -> Talk:
        return {"log": below.invoke({"said": state["said"]})["log"]}

    builder = StateGraph(Talk).add_node("outer", outer).add_edge(START, "outer")
    graph = govern(builder.compile(), name="synchronous", tools=[double])
    async with office.open(tools={"double": {"effect": "read"}}) as runtime:
        run = await runtime.start(graph, {"said": "x"}, tenant="acme")
        result = await run.result(IN_TIME)
        [call] = (await runtime.show(run.id, tenant="acme")).calls
    assert (result.status, result.output["log"]) == (RunStatus.COMPLETED, ["8"]), result.error
    assert (call.identity.name, call.identity.site.node, call.status) == ("double", "inner", "returned")


async def test_bare_invocation_inside_a_runtime_is_an_attached_run_with_journal_and_budget(office: Office):
    with scripted_by_message("speaker", {"": "hello"}) as model:

        async def speak(state: Talk, runtime: NodeRuntime[RunContext]) -> Talk:
            return {"log": [(await runtime.context.models.call(state["said"])).content]}

        builder = StateGraph(Talk, context_schema=RunContext).add_node("speak", speak).add_edge(START, "speak")
        graph = govern(builder.compile(), name="speaker", default_model=model.model)
        async with office.open(attached_tenant="acme", limits=Limits(max_model_calls=1)) as runtime:
            assert (await graph.ainvoke({"said": "hi"}))["log"] == ["hello"]
            [run] = await runtime.runs(tenant="acme")
            report = await runtime.show(run.run_id, tenant="acme")
            assert (run.attached, run.status) == (True, RunStatus.COMPLETED)
            assert [call.identity.kind for call in report.calls] == ["model"]
            assert report.budget.spent.model_calls == 1
        async with office.open(attached_tenant="acme", limits=Limits(max_model_calls=0)) as runtime:
            with pytest.raises(BudgetExceeded, match="max_model_calls"):
                await graph.ainvoke({"said": "hi"})
            [run, _] = await runtime.runs(tenant="acme")
            assert run.status is RunStatus.FAILED
            assert run.cause is not None
            assert (run.cause.error_type, run.cause.step_name) == ("budget_exceeded", "speak")
    assert model.sends == 1


async def test_bare_invocation_where_it_is_not_clear_for_whom_says_how_to_make_it_clear(office: Office):
    async with office.open() as runtime:
        with pytest.raises(InvalidRequest, match="attached_tenant"):
            await talk().ainvoke({"said": "x"})
        assert not await runtime.runs(tenant="acme")


async def test_synchronous_invocation_outside_a_run_refuses_and_says_what_to_call(office: Office):
    graph = talk()
    async with office.open(attached_tenant="acme") as runtime:
        with pytest.raises(NotGoverned, match=r"ainvoke|Runtime\.start|open_blocking_runtime"):
            graph.invoke({"said": "x"})
        assert not await runtime.runs(tenant="acme")


async def test_invocation_outside_any_runtime_refuses_and_says_what_to_call():
    with pytest.raises(NotGoverned, match="open_runtime"):
        await talk().ainvoke({"said": "x"})
    with pytest.raises(NotGoverned, match="open"):
        talk().invoke({"said": "x"})
