"""What it costs to do again what is recorded: a node that runs again after an answer, and `Runtime.replay`."""

import operator
import time
from statistics import median
from typing import Annotated, Any

from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime as NodeRuntime
from langgraph.types import interrupt
from typing_extensions import TypedDict

from benchmarks.measuring import table
from benchmarks.servers import durable_server
from holdfast import Limits, Principal, RunContext, govern, open_runtime, tool
from holdfast.contracts.tenancy import Tenant
from holdfast.runtime.runtime import Runtime
from holdfast.server.settings import load_settings

CALLS = 200
FIRST, AGAIN, REPLAYED = "a node's first run", "the node again, after an answer", "`Runtime.replay`, both of these"
ADA = Principal(user_id="ada", tenants=("bench",), roles=("approver", "operator"))
ENOUGH = Limits(max_tool_calls=None, deadline_seconds=600)
_seconds: list[float] = []
"""How long the node's calls took, each time it ran."""


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


@tool(effect="read")
async def look(number: int) -> str:
    """Look at something, which takes no time."""
    return f"seen {number}"


async def looking(state: State, runtime: NodeRuntime[RunContext]) -> State:
    began = time.perf_counter()
    for number in range(CALLS):
        await runtime.context.tools.call("look", {"number": number})
    _seconds.append(time.perf_counter() - began)
    return {"log": [interrupt("go on?")]}


async def bench(rounds: int) -> str:
    builder = StateGraph(State, context_schema=RunContext).add_node("looking", looking).add_edge(START, "looking")
    graph = govern(builder.compile(), name="looking", version="1", tools=[look])
    found: dict[str, list[float]] = {FIRST: [], AGAIN: [], REPLAYED: []}
    async with durable_server() as server:
        settings = load_settings(
            DATABASE_URL=server.app_url,
            tenants=[Tenant(tenant_id="bench", may_be_unlimited=True)],
            principals={"ada": ADA},
        )
        async with open_runtime(settings, graphs=[graph]) as runtime:
            for _ in range(rounds + 1):
                for name, seconds in zip(found, await _once(runtime, graph), strict=True):
                    found[name].append(seconds)
    of_one = {name: median(seconds[1:]) / CALLS * 1000 for name, seconds in found.items()}  # the first is to warm up
    of_one[REPLAYED] /= 2
    rows = [[name, f"{ms:.2f}", f"**{of_one[FIRST] / ms:.1f}**"] for name, ms in of_one.items()]
    return table([f"{CALLS} tool calls one after the other", "ms a call", "times as fast as the first run"], rows)


async def _once(runtime: Runtime, graph: Any) -> tuple[float, float, float]:
    _seconds.clear()
    run = await runtime.start(graph, {"log": []}, tenant="bench", user=ADA, limits=ENOUGH)
    [question] = (await run.result()).approvals
    await runtime.decide(question.id, "respond", by=ADA, value="yes")
    await run.result()
    first, again = _seconds
    began = time.perf_counter()
    report = await runtime.replay(run.run_id, tenant="bench", by=ADA)
    replayed = time.perf_counter() - began
    assert report.same, report.differences
    return first, again, replayed
