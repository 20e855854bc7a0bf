"""A run executed again against its record: the same code does the same, other code is told apart, and no more."""

import operator
from collections.abc import Iterator
from typing import Annotated, Any

import psycopg
import pytest
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.func import task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import _messages_delta_reducer, add_messages
from langgraph.runtime import Runtime as NodeRuntime
from langgraph.types import Command, Send, interrupt
from offices import Office
from psycopg import sql
from typing_extensions import TypedDict

from holdfast import Limits, RunContext, RunStatus, ToolCall, current, govern, tool
from holdfast.contracts.errors import AuthError, Conflict, NotFound, PermanentDependency, PolicyDenied
from holdfast.contracts.tenancy import Tenant
from holdfast.graphs.refund_desk import graph as desk
from holdfast.graphs.refund_desk import sample, store
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.testing.scripted import Script, scripted

IN_TIME = 20.0


class State(TypedDict, total=False):
    order: str
    part: str
    messages: Annotated[list[AnyMessage], add_messages]
    log: Annotated[list[str], operator.add]


class Handled(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


class Works:
    """A fan-out over parts, each handled by a subgraph with a `@task`, a model, a tool and a person; then a report.
    What the code does can be changed between recording and replay."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.sent: list[str] = []
        """What the tool was called with, outside."""
        self.price = "10.00"
        self.asks = True
        self.reports = "report"
        self.ending = "end"
        self.trouble: Exception | None = None
        self.version = "1"

    def graph(self) -> Any:
        @tool(effect="external")
        async def pay(part: str, amount: str, *, call: ToolCall) -> dict[str, str]:
            """Pay for a part."""
            self.sent.append(part)
            if self.trouble is not None:
                raise self.trouble
            return {"paid": part}

        @task
        async def think(part: str) -> str:
            reply = await holdfast_models().call(f"think about {part}")
            return reply.content

        async def plan(state: State, runtime: NodeRuntime[RunContext]) -> State:
            reply = await runtime.context.models.call(f"plan {state['order']}")
            return {"log": [reply.content], "messages": [AIMessage(reply.content)]}

        def parts(state: State) -> list[Send]:
            return [Send("handle", {"part": part}) for part in ("a", "b", "c")]

        async def consider(state: State) -> State:
            return {"log": [f"{state['part']}: {await think(state['part'])}"]}

        async def settle(state: State, runtime: NodeRuntime[RunContext]) -> State:
            result = await runtime.context.tools.call("pay", {"part": state["part"], "amount": self.price})
            return {"log": [f"{state['part']}: {result.status}"]}

        async def agree(state: State) -> State:
            return {"log": [f"{state['part']}: {interrupt('fine?') if self.asks else 'not asked'}"]}

        async def report(state: State, runtime: NodeRuntime[RunContext]) -> State:
            reply = await runtime.context.models.call(f"{self.reports} {sorted(state['log'])}")
            return {"log": [reply.content, self.ending]}

        inner = StateGraph(State, context_schema=RunContext, output_schema=Handled)
        inner.add_node("consider", consider).add_node("settle", settle).add_node("agree", agree)
        inner.add_edge(START, "consider").add_edge("consider", "settle").add_edge("settle", "agree")
        outer = StateGraph(State, context_schema=RunContext)
        outer.add_node("plan", plan).add_node("handle", inner.compile()).add_node("report", report)
        outer.add_edge(START, "plan").add_conditional_edges("plan", parts, ["handle"])
        outer.add_edge("handle", "report").add_edge("report", END)
        return govern(outer.compile(), name="works", version=self.version, tools=[pay], default_model=self.script.model)

    async def recorded(self, runtime: Runtime, **options: Any) -> RunHandle:
        """A run that has ended, everybody having said yes."""
        run = await runtime.start(self.graph(), {"order": "o"}, tenant="acme", **options)
        while (result := await run.result(IN_TIME)).status is RunStatus.INTERRUPTED:
            for question in result.approvals:
                decision: Any = "respond" if question.tool_name is None else "approve"
                value = "fine" if decision == "respond" else None
                await runtime.decide(question.id, decision, value=value, by="dana")
        return run


def holdfast_models() -> Any:
    return current().models


@pytest.fixture
def works() -> Iterator[Works]:
    def answer(request: Any) -> str:
        return f"on {request.messages[-1]['content']}"

    with scripted("works", *[answer] * 50) as script:
        yield Works(script)


async def everything(office: Office) -> dict[str, Any]:
    """A digest of every table but the one in which workers say that they are there."""
    async with await psycopg.AsyncConnection.connect(office.urls.admin) as conn:
        names = await conn.execute(
            "select tablename from pg_tables where schemaname = 'public' and tablename <> 'workers'"
        )
        found = {}
        for (name,) in await names.fetchall():
            query = sql.SQL("select count(*), md5(string_agg(t::text, '|' order by t::text)) from {} t")
            found[name] = await (await conn.execute(query.format(sql.Identifier(name)))).fetchone()
    return found


async def test_refund_desk_is_replayed_with_its_specialists_and_its_approval(office: Office, tmp_path: Any):
    ledger = store.configure(tmp_path / "refunds.sqlite3")
    async with office.open(graphs=[desk]) as runtime:
        run = await runtime.start(desk, {"email": sample("large")}, tenant="acme")
        result = await run.result(IN_TIME)
        for question in result.approvals:
            await runtime.decide(question.id, "approve", by="dana")
        result = await run.result(IN_TIME)
        assert result.status is RunStatus.COMPLETED, result.error
        recorded = (await runtime.show(run.id, tenant="acme")).calls
        paid, before = len(ledger.refunds()), await everything(office)
        report = await runtime.replay(run.id, tenant="acme", by="olga")
        assert await everything(office) == before, "a replay writes nothing"
    assert (report.differences, report.left_out, report.stop) == ((), [], None)
    assert report.same
    assert {call.call_id for call in report.calls} == {call.call_id for call in recorded}
    assert report.output == result.output
    assert len(ledger.refunds()) == paid


async def test_fan_out_over_subgraphs_with_tasks_tools_and_questions_is_replayed_exactly(office: Office, works: Works):
    async with office.open() as runtime:
        run = await works.recorded(runtime)
        recorded, asked, sent = (await runtime.show(run.id, tenant="acme")).calls, works.script.sends, list(works.sent)
        before = await everything(office)
        report = await runtime.replay(run.id, tenant="acme", by="olga")
        assert await everything(office) == before
    assert report.differences == ()
    assert sorted(call.call_id for call in report.calls) == sorted(call.call_id for call in recorded)
    assert len(recorded) == 8
    assert (works.script.sends, works.sent) == (asked, sent), "nobody was asked, and nothing was sent"


@pytest.mark.parametrize(
    ("change", "where", "words"),
    [
        ({"price": "11.00"}, "settle", "no longer asks for pay"),
        ({"reports": "summarise"}, "report", "call of scripted:"),
        ({"asks": False}, "report", "call of scripted:"),
        ({"ending": "the end"}, None, "the output's 'log' is another one"),
    ],
)
async def test_other_code_is_told_apart_at_the_first_thing_that_it_does_otherwise(
    office: Office, works: Works, change: dict[str, Any], where: str | None, words: str
):
    async with office.open() as runtime:
        run = await works.recorded(runtime)
        for name, value in change.items():
            setattr(works, name, value)
        works.version = "2"
        runtime.register(works.graph())
        asked, sent, before = works.script.sends, list(works.sent), await everything(office)
        report = await runtime.replay(run.id, tenant="acme", by="olga")
        assert await everything(office) == before
    assert (report.same, report.graph_version) == (False, "2")
    assert words in " ".join(report.differences)
    assert (None if report.stop is None else report.stop.node) == where
    assert (works.script.sends, works.sent) == (asked, sent)


async def test_second_run_of_a_thread_is_replayed_from_where_it_began(office: Office, works: Works):
    async with office.open() as runtime:
        await works.recorded(runtime, thread="long")
        second = await works.recorded(runtime, thread="long")
        report = await runtime.replay(second.id, tenant="acme", by="olga")
    assert report.differences == ()
    assert len(report.calls) == 8
    assert len(report.output["log"]) == 2 * 12


async def test_fork_and_resumed_run_are_replayed_with_what_was_recorded_for_them(office: Office, works: Works):
    async with office.open() as runtime:
        run = await works.recorded(runtime, thread="works")
        [at] = [each for each in await runtime.history("works", tenant="acme", by="olga") if each.next == ("report",)]
        fork = await runtime.fork("works", at=at.checkpoint_id, tenant="acme", by="olga", values={"log": ["changed"]})
        assert (await fork.result(IN_TIME)).status is RunStatus.COMPLETED
        short = await works.recorded(runtime, thread="short", limits=Limits(max_model_calls=4))
        assert (await short.result(IN_TIME)).status is RunStatus.FAILED
        resumed = await runtime.resume(short.id, tenant="acme", by="olga", limits=Limits(max_model_calls=9))
        assert (await resumed.result(IN_TIME)).status is RunStatus.COMPLETED
        reports = [await runtime.replay(each.id, tenant="acme", by="olga") for each in (run, fork, short, resumed)]
    assert [report.differences for report in reports] == [()] * 4
    assert [len(report.calls) for report in reports] == [8, 1, 7, 1]
    assert reports[2].stop is None
    assert reports[2].status is RunStatus.FAILED


async def test_run_that_waits_or_was_stopped_is_replayed_up_to_there(office: Office, works: Works):
    async with office.open() as runtime:
        run = await runtime.start(works.graph(), {"order": "o"}, tenant="acme")
        assert (await run.result(IN_TIME)).status is RunStatus.INTERRUPTED
        waiting = await runtime.replay(run.id, tenant="acme", by="olga")
        await run.cancel(by="dana")
        stopped = await runtime.replay(run.id, tenant="acme", by="olga")
    assert (waiting.differences, waiting.status, len(waiting.calls)) == ((), RunStatus.INTERRUPTED, 4)
    assert (stopped.differences, len(stopped.calls)) == ((), 4)


async def test_failure_that_is_recorded_is_replayed_as_the_same_failure(office: Office, works: Works):
    works.trouble = PermanentDependency("the bank is closed")
    with scripted("refusing", AuthError("the key was refused")) as script:
        works.script = script
        async with office.open() as runtime:
            run = await runtime.start(works.graph(), {"order": "o"}, tenant="acme")
            assert (await run.result(IN_TIME)).status is RunStatus.FAILED
            report = await runtime.replay(run.id, tenant="acme", by="olga")
    assert (report.differences, report.status) == ((), RunStatus.FAILED)
    assert report.error is not None
    assert (report.error.error_type, report.error.step_name) == ("auth_error", "plan")


class Talk(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], DeltaChannel(_messages_delta_reducer, snapshot_frequency=50)]


async def test_run_on_a_delta_thread_is_replayed_from_what_had_been_said(office: Office, works: Works):
    async def answer(state: Talk, runtime: NodeRuntime[RunContext]) -> Talk:
        said = [message.content for message in state["messages"]]
        reply = await runtime.context.models.call(f"answer {said}")
        return {"messages": [AIMessage(reply.content)]}

    builder = StateGraph(Talk, context_schema=RunContext).add_node("answer", answer).add_edge(START, "answer")
    graph = govern(builder.compile(), name="talk", default_model=works.script.model)
    async with office.open(graphs=[graph]) as runtime:
        for text in ("hello", "again", "and again"):
            run = await runtime.start("talk", {"messages": [AIMessage(text)]}, tenant="acme", thread="talk")
            result = await run.result(IN_TIME)
            assert result.status is RunStatus.COMPLETED, result.error
        report = await runtime.replay(run.id, tenant="acme", by="olga")
    assert (report.differences, len(report.calls), len(report.output["messages"])) == ((), 1, 6)


async def test_agent_with_carried_model_and_tools_is_replayed(office: Office, works: Works):
    paid: list[str] = []

    @tool(effect="external")
    def pay(amount: str) -> str:
        """Pay an amount."""
        paid.append(amount)
        return f"paid {amount}"

    asked = {"name": "pay", "args": {"amount": "3.00"}, "id": "one", "type": "tool_call"}
    answers = iter([AIMessage("", tool_calls=[asked]), AIMessage("done")])
    agent = govern(create_agent(ToolReady(messages=answers), tools=[pay]), name="agent")
    terms = Tenant(tenant_id="acme", may_be_unlimited=True)  # nobody knows the price of this model
    async with office.open(graphs=[agent], tenants=[terms]) as runtime:
        value = {"messages": [("user", "pay three")]}
        run = await runtime.start("agent", value, tenant="acme", limits=Limits(max_cost_usd=None))
        result = await run.result(IN_TIME)
        for question in result.approvals:
            await runtime.decide(question.id, "approve", by="dana")
        result = await run.result(IN_TIME)
        assert result.status is RunStatus.COMPLETED, result.error
        report = await runtime.replay(run.id, tenant="acme", by="olga")
    assert (report.differences, [call.identity.kind for call in report.calls]) == ((), ["model", "tool", "model"])
    assert paid == ["3.00"]


class ToolReady(GenericFakeChatModel):
    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self


async def test_breakpoint_is_passed_in_a_replay_as_it_was_then(office: Office):
    async def say(state: Handled) -> Handled:
        return {"log": ["said"]}

    builder = StateGraph(Handled).add_node("say", say).add_edge(START, "say")
    graph = govern(builder.compile(interrupt_before=["say"]), name="careful")
    async with office.open(graphs=[graph]) as runtime:
        runs = [await runtime.start("careful", {"log": []}, tenant="acme") for _ in range(2)]
        for run, decision in zip(runs, ("approve", "reject"), strict=True):
            [question] = (await run.result(IN_TIME)).approvals
            waiting = await runtime.replay(run.id, tenant="acme", by="olga")
            assert (waiting.differences, waiting.status) == ((), RunStatus.INTERRUPTED)
            await runtime.decide(question.id, decision, by="dana")
            await run.result(IN_TIME)
        passed, stopped = [await runtime.replay(run.id, tenant="acme", by="olga") for run in runs]
    assert (passed.differences, passed.status, passed.output["log"]) == ((), RunStatus.COMPLETED, ["said"])
    assert (stopped.status, stopped.differences) == (RunStatus.INTERRUPTED, ())


async def test_replay_is_for_those_who_may_and_for_runs_that_rest(office: Office, works: Works):
    async with office.open(worker=False) as runtime:
        run = await runtime.start(works.graph(), {"order": "o"}, tenant="acme")
        with pytest.raises(Conflict, match="is queued: it is still being recorded"):
            await runtime.replay(run.id, tenant="acme", by="olga")
        await run.cancel(by="dana")
        with pytest.raises(Conflict, match="never came to a checkpoint"):
            await runtime.replay(run.id, tenant="acme", by="olga")
        with pytest.raises(PolicyDenied, match="role admin or operator"):
            await runtime.replay(run.id, tenant="acme", by="dana")
        with pytest.raises(NotFound):
            await runtime.replay(run.id, tenant="bolt", by="mallory")
    async with office.open(worker=False) as runtime:
        with pytest.raises(NotFound, match="no graph is named 'works'"):
            await runtime.replay(run.id, tenant="acme", by="olga")


async def test_graph_that_a_tools_body_calls_and_an_error_handler_are_replayed(office: Office, works: Works):
    below = works.graph()

    @tool(effect="write")
    async def delegate(order: str) -> str:
        """Let the works do it, and say so."""
        done = await below.ainvoke({"order": order})
        await holdfast_models().call(f"{order} is done")
        return str(len(done["log"]))

    async def failing(state: State) -> State:
        done = await current().tools.call("delegate", {"order": state["order"]})
        raise RuntimeError(f"after {done.text}")

    async def rescue(state: State) -> Command[Any]:
        asked = await current().tools.call("delegate", {"order": f"{state['order']} again"})
        return Command(update={"log": [asked.text, str(interrupt("fine?"))]}, goto=END)

    builder = StateGraph(State).add_node("failing", failing, error_handler=rescue).add_edge(START, "failing")
    graph = govern(builder.compile(), name="rescued", version="1", tools=[delegate], default_model=works.script.model)
    works.graph = lambda: graph  # type: ignore[method-assign]
    async with office.open() as runtime:
        run = await works.recorded(runtime)
        assert (await run.result(IN_TIME)).status is RunStatus.COMPLETED
        report = await runtime.replay(run.id, tenant="acme", by="olga")
    assert (report.differences, report.left_out, report.stop) == ((), [], None)
    assert [call.identity.name for call in report.calls] == ["delegate", "delegate"]


async def test_fork_that_ended_inside_a_subgraph_has_nothing_of_its_own_to_replay(office: Office, works: Works):
    async with office.open() as runtime:
        await works.recorded(runtime, thread="works")
        [at] = [each for each in await runtime.history("works", tenant="acme", by="olga") if "handle" in each.next]
        nothing = Limits(max_tool_calls=0)
        fork = await runtime.fork("works", at=at.checkpoint_id, tenant="acme", by="olga", limits=nothing)
        assert (await fork.result(IN_TIME)).status is RunStatus.FAILED
        with pytest.raises(Conflict, match="never came to a checkpoint"):
            await runtime.replay(fork.id, tenant="acme", by="olga")
