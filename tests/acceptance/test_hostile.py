"""Hostile input and hostile code through the public face: a run ends with a typed cause, and nothing is left in doubt.

Each test ends with the invariants, which the fixture `office` asks for.
"""

import sys
from typing import Any

import pytest
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime as NodeRuntime
from offices import Office
from typing_extensions import TypedDict

from holdfast import RunContext, RunStatus, govern, tool
from holdfast.contracts.errors import ErrorType
from holdfast.runtime.runtime import RunReport, Runtime

IN_TIME = 20.0


class State(TypedDict, total=False):
    order: str
    said: Any


def graph_of(node: Any, *tools: Any, name: str = "hostile") -> Any:
    builder = StateGraph(State, context_schema=RunContext).add_node("node", node).add_edge(START, "node")
    return govern(builder.compile(), name=name, tools=tools)


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
