"""Hostile input and hostile code through the public face: a run ends with a typed cause, and nothing is left in doubt.

Each test ends with the invariants, which the fixture `office` asks for.
"""

import asyncio
import sys
from typing import Any

import psycopg
import pytest
from fix_database import DatabaseUrls
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.tools import Tool as TextTool
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime as NodeRuntime
from langgraph.types import interrupt
from offices import Office
from psycopg import sql
from pydantic import BaseModel
from scenes import new_id
from typing_extensions import TypedDict

from holdfast import RunContext, RunStatus, govern, tool
from holdfast.contracts.approvals import ApprovalStatus
from holdfast.contracts.errors import Conflict, ErrorType, InvalidRequest
from holdfast.contracts.models import ToolCallRequest
from holdfast.gateway.scripted import ScriptedReply
from holdfast.runtime.runtime import RunReport, Runtime
from holdfast.testing.scripted import scripted

IN_TIME = 20.0


class State(TypedDict, total=False):
    order: str
    said: Any


def graph_of(node: Any, *tools: Any, name: str = "hostile") -> Any:
    builder = StateGraph(State, context_schema=RunContext).add_node("node", node).add_edge(START, "node")
    return govern(builder.compile(), name=name, version="1", tools=tools)  # what it holds has no end


async def ended(runtime: Runtime, graph: Any) -> RunReport:
    """What there is to know of a run of `graph` once it rests."""
    run = await runtime.start(graph, {"order": "A-1"}, tenant="acme")
    await run.result(IN_TIME)
    return await runtime.show(run.id, tenant="acme")


class Panic(BaseException):
    """As an extension written in Rust raises it."""


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


UNTELLABLE = {
    "NUL": ValueError("a \x00 in a file"),
    "a lone surrogate": ValueError("a \ud800 in a file"),
    "no words": Mute(),
    "no end": ValueError("y" * 1_000_000),
    "the end of the process": SystemExit(2),
    "a panic": Panic("index out of bounds"),
}


def calling(name: str) -> Any:
    async def node(state: State, runtime: NodeRuntime[RunContext]) -> State:
        result = await runtime.context.tools.call(name, {"order": state["order"]})
        return {"said": result.model_dump(mode="json")}

    return node


@pytest.mark.parametrize("error", UNTELLABLE.values(), ids=UNTELLABLE)
@pytest.mark.parametrize("effect", ["read", "write"])
async def test_whatever_a_tool_raises_is_recorded_and_told(office: Office, error: BaseException, effect: str):
    @tool(effect=effect)
    async def look_up(order: str) -> str:
        """Look an order up."""
        raise error

    async with office.open() as runtime:
        report = await ended(runtime, graph_of(calling("look_up"), look_up))
    assert report.run.status is RunStatus.COMPLETED
    assert report.run.output["said"]["error_type"] == ErrorType.PERMANENT_DEPENDENCY
    assert len(report.run.output["said"]["error_message"]) < 20_000
    assert [(call.status, call.sends) for call in report.calls] == [("failed", 1)]


@pytest.mark.parametrize("name", sorted(UNTELLABLE.keys() - {"no words"}))  # OpenTelemetry asks for its words first
async def test_whatever_a_node_raises_ends_its_run_at_once_and_not_its_worker(office: Office, name: str):
    async def node(state: State) -> State:
        if state["order"] == "A-1":
            raise UNTELLABLE[name]
        return {"said": "fine"}

    graph = graph_of(node)
    async with office.open() as runtime:
        report = await ended(runtime, graph)
        after = await runtime.start(graph, {"order": "A-2"}, tenant="acme")
        assert (await after.result(IN_TIME)).output["said"] == "fine"
    assert (report.run.status, report.run.attempt) == (RunStatus.FAILED, 1)
    assert report.run.cause is not None
    assert (report.run.cause.step_name, report.run.cause.error_type) == ("node", ErrorType.PERMANENT_DEPENDENCY)


async def test_a_synchronous_tool_that_exits_fails_alone(office: Office):
    @tool(effect="read")
    def parse(order: str) -> str:
        """Parse an order as a script would."""
        sys.exit("usage: parse ORDER")

    async with office.open() as runtime:
        report = await ended(runtime, graph_of(calling("parse"), parse))
    assert report.run.status is RunStatus.COMPLETED
    assert "usage: parse ORDER" in report.run.output["said"]["error_message"]


class Opaque(BaseModel):
    inside: Any


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


UNKEEPABLE = {
    "no end": nested(5_000),
    "an integer without end": 10**5_000,
    "what has no JSON": Opaque(inside=object()),
    "NUL": "a\x00b",
    "a lone surrogate": "a\ud800b",
}


@pytest.mark.parametrize("answer", UNKEEPABLE.values(), ids=UNKEEPABLE)
@pytest.mark.parametrize(("effect", "status"), [("read", "failed"), ("write", "returned")])
async def test_an_answer_that_cannot_be_kept_still_ends_its_call(office: Office, answer: Any, effect: str, status: str):
    @tool(effect=effect)
    async def look_up(order: str) -> Any:
        """Look an order up."""
        return answer

    async with office.open() as runtime:
        report = await ended(runtime, graph_of(calling("look_up"), look_up))
    assert report.run.status is RunStatus.COMPLETED
    assert [call.status for call in report.calls] == [status]


@pytest.mark.parametrize("given", UNKEEPABLE.values(), ids=UNKEEPABLE)
async def test_an_argument_that_cannot_be_kept_is_refused_and_told(office: Office, given: Any):
    @tool(effect="external")
    async def pay(order: Any) -> str:
        """Pay an order."""
        raise AssertionError("called")

    async def node(state: State, runtime: NodeRuntime[RunContext]) -> State:
        result = await runtime.context.tools.call("pay", {"order": given})
        return {"said": result.error_type}

    async with office.open() as runtime:
        report = await ended(runtime, graph_of(node, pay))
    assert (report.run.output["said"], report.calls) == (ErrorType.VALIDATION_ERROR, [])


async def test_a_person_is_asked_about_integers_of_any_size(office: Office):
    paid: list[int] = []

    @tool(effect="external")
    async def pay(account: int) -> str:
        """Pay to an account."""
        paid.append(account)
        return "paid"

    async def node(state: State, runtime: NodeRuntime[RunContext]) -> State:
        reply = await runtime.context.models.call("Whom do we pay?", tools=runtime.context.tools.schemas())
        return {"said": (await runtime.context.tools.call("pay", reply.tool_calls[0].args)).text}

    asking = ScriptedReply(tool_calls=(ToolCallRequest(id="1", name="pay", args={"account": 2**80}),))
    with scripted("payer", asking) as model:
        async with office.open(model=model.model) as runtime:
            run = await runtime.start(graph_of(node, pay), {"order": "A-1"}, tenant="acme")
            [asked] = (await run.result(IN_TIME)).approvals
            await runtime.decide(asked.id, "approve", by="dana")
            assert (await run.result(IN_TIME)).output["said"] == "paid"
    assert paid == [2**80]


async def test_a_text_that_no_database_can_store_is_an_invalid_request_everywhere(office: Office):
    bad = "acme\ud800"
    async with office.open() as runtime:
        for asked in (
            runtime.runs(tenant=bad),
            runtime.state("thread", tenant=bad),
            runtime.state(bad, tenant="acme"),
            runtime.start(graph_of(calling("none")), {"order": "A-1"}, tenant="acme", thread=bad),
        ):
            with pytest.raises(InvalidRequest):
                await asked


# LangChain's tools, called in a node as LangChain calls them


def using(a_tool: BaseTool, given: Any) -> Any:
    async def node(state: State) -> State:
        return {"said": await a_tool.ainvoke(given)}

    return graph_of(node)


def foreign_tool(seen: list[dict[str, Any]], **declared: Any) -> BaseTool:
    """As an MCP client makes one: the schema is given, and names no defaults."""

    async def pay(**arguments: Any) -> str:
        seen.append(arguments)
        return "paid"

    text = {"type": "string"}
    schema = {"type": "object", "properties": {"order": text, "note": text}, "required": ["order"]}
    return StructuredTool(name="pay", description="Pay.", args_schema=schema, coroutine=pay, metadata=declared)


async def test_what_a_person_takes_out_of_a_call_does_not_reach_the_tool(office: Office):
    seen: list[dict[str, Any]] = []
    async with office.open() as runtime:
        graph = using(foreign_tool(seen), {"order": "A-1", "note": "and tell everyone"})
        run = await runtime.start(graph, {"order": "A-1"}, tenant="acme")
        [asked] = (await run.result(IN_TIME)).approvals
        await runtime.decide(asked.id, "edit", args={"order": "A-1"}, by="dana")
        assert (await run.result(IN_TIME)).output["said"] == "paid"
    assert seen == [{"order": "A-1"}]


async def test_the_operators_terms_hold_for_a_tool_the_graph_was_not_told_of(office: Office):
    seen: list[dict[str, Any]] = []
    async with office.open(tools={"pay": {"effect": "external"}}) as runtime:
        report = await ended(runtime, using(foreign_tool(seen, effect="read"), {"order": "A-1"}))
        assert (report.run.status, seen) == (RunStatus.INTERRUPTED, [])
        await runtime.cancel(report.run.run_id, tenant="acme", by="dana")


@pytest.mark.parametrize("given", ["A-1", {"__arg1": "A-1"}])
async def test_a_tool_of_one_text_is_called_with_it(office: Office, given: Any):
    look_up = TextTool(
        name="look_up", description="Look up.", func=lambda text: f"found {text}", metadata={"effect": "read"}
    )
    async with office.open() as runtime:
        report = await ended(runtime, using(look_up, given))
    assert report.run.output["said"] == "found A-1"


async def test_one_edit_does_not_stand_for_several_calls_that_are_asked_for_at_once(office: Office):
    calls = [{"name": "pay", "args": {"order": order}} for order in "ABC"]

    async def node(state: State) -> State:
        return {"said": interrupt({"action_requests": calls, "review_configs": []})}

    async with office.open() as runtime:
        report = await ended(runtime, graph_of(node))
        [asked] = report.approvals
        with pytest.raises(InvalidRequest, match="3 calls at once"):
            await runtime.decide(asked.id, "edit", args={"order": "Z"}, by="dana")
        assert (await runtime.decide(asked.id, "approve", by="dana")).status is ApprovalStatus.APPROVED
        run = await runtime.run(report.run.run_id, tenant="acme")
        assert (await run.result(IN_TIME)).output["said"] == {"decisions": [{"type": "approve"}] * 3}


# Other tenants


async def test_a_run_id_of_another_tenant_is_taken_and_nothing_is_said_of_its_run(office: Office):
    graph = using(foreign_tool([], effect="read"), {"order": "A-1"})
    async with office.open() as runtime:
        theirs = (await ended(runtime, graph)).run
        with pytest.raises(Conflict) as caught:
            await runtime.start(graph, {"order": "A-2"}, tenant="bolt", run_id=theirs.run_id)
        assert await runtime.runs(tenant="bolt") == []
        assert (await runtime.run(theirs.run_id, tenant="acme")).thread == theirs.thread_key
    assert caught.value.message == f"the run id {theirs.run_id} is taken; use a new one"


async def test_every_way_to_another_tenants_run_and_approval_is_as_if_there_were_none(office: Office):
    async with office.open() as runtime:
        run = await runtime.start(using(foreign_tool([]), {"order": "A-1"}), {"order": "A-1"}, tenant="acme")
        [asked] = (await run.result(IN_TIME)).approvals

        async def told(run_id: str, approval_id: str, thread: str) -> list[str]:
            ways = (
                runtime.run(run_id, tenant="bolt"),
                runtime.wait(run_id, tenant="bolt", timeout=IN_TIME),
                runtime.show(run_id, tenant="bolt"),
                runtime.events(run_id, tenant="bolt"),
                runtime.cancel(run_id, tenant="bolt", by="mallory"),
                runtime.cancel(run_id, tenant="acme", by="mallory"),
                runtime.state(thread, tenant="bolt"),
                runtime.decide(approval_id, "approve", by="mallory"),
            )
            answers = [await asyncio.gather(way, return_exceptions=True) for way in ways]
            assert await runtime.approvals(tenant="bolt", run_id=run_id, pending_only=False) == []
            return [f"{type(error).__name__}: {error}" for [error] in answers]

        real, invented = (run.id, asked.id, run.thread), (new_id(), new_id(), "nowhere")
        seen = [line.replace(*pair) for line, pair in zip(await told(*real), _pairs(real, invented), strict=True)]
        assert all(line.startswith("NotFound: ") for line in seen)
        assert seen == await told(*invented)
        await run.cancel(by="dana")


def _pairs(real: tuple[str, str, str], invented: tuple[str, str, str]) -> list[tuple[str, str]]:
    """What tells the two apart in each answer: the id that was asked for."""
    run, approval, thread = zip(real, invented, strict=True)
    return [run, run, run, run, run, run, thread, approval]


# Secrets


KEY = "sk-live-abcdefghijklmnopqrstuvwxyz"
PLACES = ("runs", "calls", "events", "approvals", "checkpoints", "checkpoint_blobs", "checkpoint_writes")


async def everything_kept(urls: DatabaseUrls) -> str:
    """All that the database holds of runs, as text; bytes too, as far as they are text."""
    kept: list[str] = []
    async with await psycopg.AsyncConnection.connect(urls.admin) as conn:
        for place in PLACES:
            rows = await (await conn.execute(sql.SQL("select * from {}").format(sql.Identifier(place)))).fetchall()
            kept += [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for row in rows for v in row]
    return "\n".join(kept)


async def test_a_key_that_an_exception_quotes_is_kept_nowhere(office: Office):
    refused = ConnectionError(f"403 for url 'https://host/v1?key={KEY}': {KEY} is not a key")

    @tool(effect="read")
    async def look_up(order: str) -> str:
        """Look an order up."""
        raise PermissionError(*refused.args)

    async def node(state: State, runtime: NodeRuntime[RunContext]) -> State:
        assert (await runtime.context.tools.call("look_up", {"order": "A-1"})).status == "error"
        raise refused

    async with office.open() as runtime:
        report = await ended(runtime, graph_of(node, look_up))
    assert report.run.status is RunStatus.FAILED
    kept = await everything_kept(office.urls)
    assert "403 for url" in kept
    assert KEY not in kept
