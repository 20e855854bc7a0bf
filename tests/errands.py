"""The program that recorded versions ran and that today's runs on: graphs, and a process that is told what to do.

It knows the public face alone, so that every version can run it. As a process of its own it opens a runtime and obeys
lines of JSON on standard input, answering each with a line; of a payment that hangs it tells when it got there.
"""

import asyncio
import json
import operator
import sys
from itertools import pairwise
from typing import Annotated, Any

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from typing_extensions import TypedDict

import holdfast
from holdfast import Principal, RunContext, ToolCall, govern, open_runtime, tool
from holdfast.contracts.models import ModelRequest
from holdfast.contracts.tenancy import Tenant
from holdfast.server.settings import load_settings

SETTINGS = {
    "tenants": [Tenant(tenant_id="acme"), Tenant(tenant_id="bolt")],
    "principals": {"dana": Principal(user_id="dana", tenants=("acme", "bolt"), roles=("approver",))},
    "worker": {"lease_ttl_seconds": 2.0, "poll_seconds": 0.1},
}
HANG = "hang"
"""An order whose payment never comes back."""


class State(TypedDict, total=False):
    order: str
    plan: str
    log: Annotated[list[str], operator.add]


def answer(request: ModelRequest) -> str:
    """The model."""
    return f"planned: {request.messages[-1]['content']}"


async def think(state: State, runtime: Runtime[RunContext]) -> State:
    reply = await runtime.context.models.call(state["order"], agent="planner")
    return {"plan": reply.content}


async def act(state: State, runtime: Runtime[RunContext]) -> State:
    result = await runtime.context.tools.call("pay", {"order": state["order"]})
    return {"log": [f"{state['order']}: {result.text}"]}


def ask(state: State) -> State:
    return {"log": [f"{state['order']}: {interrupt({'question': state['order']})}"]}


def fail(state: State) -> State:
    raise ValueError(f"there is no order {state['order']}")


async def _pay(order: str, call: ToolCall) -> str:
    if order == HANG:
        tell(hangs=call.idempotency_key)
        await asyncio.Event().wait()
    return f"paid under {call.idempotency_key}"


@tool(name="pay", effect="write", idempotent=True)
async def pay_at_once(order: str, *, call: ToolCall) -> str:
    """Pay an order; whoever is paid honours the key."""
    return await _pay(order, call)


@tool(name="pay", effect="external")
async def pay_when_approved(order: str, *, call: ToolCall) -> str:
    """Pay an order, which a person must approve."""
    return await _pay(order, call)


def _graph(name: str, *nodes: Any, **terms: Any) -> Any:
    builder = StateGraph(State, context_schema=RunContext)
    for node in nodes:
        builder.add_node(node.__name__, node)
    path = [START, *(node.__name__ for node in nodes), END]
    for edge in pairwise(path):
        builder.add_edge(*edge)
    return govern(builder.compile(), name=name, version="1", default_model="scripted:errands:answer", **terms)


GRAPHS = {
    "paying": _graph("paying", think, act, tools=[pay_at_once]),
    "approved": _graph("approved", think, act, tools=[pay_when_approved]),
    "asking": _graph("asking", ask),
    "failing": _graph("failing", think, fail),
}


def tell(**facts: Any) -> None:
    """Answer whoever started this process."""
    print(json.dumps(facts), flush=True)


async def obey(runtime: Any, command: str, given: dict[str, Any]) -> dict[str, Any]:
    """Do what a line says."""
    match command:
        case "start":
            graph, order, tenant = GRAPHS[given["graph"]], {"order": given["order"]}, given["tenant"]
            run = await runtime.start(graph, order, tenant=tenant, thread=given["thread"])
            return {"run": run.id}
        case "result":
            run = await runtime.run(given["run"], tenant=given["tenant"])
            result = await run.result(60)
            asked = [approval.id for approval in result.approvals]
            return {"status": result.status.value, "output": result.output, "approvals": asked}
        case "decide":
            await runtime.decide(given["approval"], given["decision"], by="dana", value=given.get("value"))
        case "cancel":
            await (await runtime.run(given["run"], tenant=given["tenant"])).cancel(by="dana", reason="not needed")
    return {}


async def work(serve: bool) -> None:
    """Open a runtime, with a worker or without, and obey until standard input ends."""
    async with open_runtime(load_settings(**SETTINGS), graphs=GRAPHS.values(), serve=serve) as runtime:
        tell(home=holdfast.__file__)
        while line := await asyncio.to_thread(sys.stdin.readline):
            command = json.loads(line)
            tell(**await obey(runtime, command.pop("do"), command))


def main() -> None:
    """`worker`, or anything else for a process that only asks."""
    asyncio.run(work("worker" in sys.argv))
