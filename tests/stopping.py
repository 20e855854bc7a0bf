"""A worker that stands still at the mark that it is told, and the graph that it serves.

The parent writes `stop` or `block` and a mark's name to its standard input; it answers `armed`, and says `stopped` as
the last thing before it stands still: all of it as by SIGSTOP, or its event loop alone, as by a node that sleeps
without `await`, until it is told `go on`. What the graph does to the world is a line in the file `world` of its folder:
who did what.
"""

import asyncio
import operator
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from holdfast import RunContext, ToolCall, govern, open_runtime, tool
from holdfast.contracts.marks import Mark, bound
from holdfast.contracts.models import ModelRequest
from holdfast.contracts.tenancy import Tenant
from holdfast.server.settings import load_settings

WORK_SECONDS = float(os.environ.get("STOPPING_WORK_SECONDS", "0"))
"""Long enough for a heartbeat or two."""


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def act_on_the_world(what: str) -> None:
    with Path("world").open("a", encoding="utf-8") as world:
        world.write(f"{os.getpid()} {what}\n")


def answer(request: ModelRequest) -> str:
    """The only model there is."""
    act_on_the_world("model asked")
    return "pay it"


@tool(effect="write", idempotent=True)
async def pay(order: str, *, call: ToolCall) -> str:
    """Pay an order; the provider honours the key."""
    act_on_the_world(f"paid {call.idempotency_key}")
    return f"paid {order}"


async def think(state: State, runtime: Runtime[RunContext]) -> State:
    await asyncio.sleep(WORK_SECONDS)
    reply = await runtime.context.models.call("what is to be done?", agent="thinker")
    return {"log": [reply.content]}


async def spend(state: State, runtime: Runtime[RunContext]) -> State:
    result = await runtime.context.tools.call("pay", {"order": "A-17"})
    return {"log": [result.text]}


def graph() -> object:
    builder = StateGraph(State, context_schema=RunContext).add_node("think", think).add_node("spend", spend)
    builder.add_edge(START, "think").add_edge("think", "spend")
    return govern(
        builder.compile(), name="stopping", version="1", tools=[pay], default_model="scripted:stopping:answer"
    )


class Stops:
    """Stops this process, or blocks its loop, when it comes to the mark that is armed, once."""

    def __init__(self) -> None:
        self._armed: Mark | None = None
        self._how = ""
        self._told = threading.Event()

    def obey(self) -> None:
        for order in sys.stdin:
            if order.strip() == "go on":
                self._told.set()
                continue
            self._how, mark = order.split()
            self._told.clear()
            self._armed = Mark(mark)
            print("armed", flush=True)

    async def reach(self, mark: Mark) -> None:
        self.reach_in_thread(mark)

    def reach_in_thread(self, mark: Mark) -> None:
        if mark is self._armed:
            self._armed = None
            print("stopped", flush=True)
            if self._how == "block":
                self._told.wait()
            else:
                os.kill(os.getpid(), signal.SIGSTOP)


async def work(lease_seconds: float) -> None:
    """Serve the graph until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = load_settings(
        tenants=[Tenant(tenant_id="acme")],
        worker={"lease_ttl_seconds": lease_seconds, "poll_seconds": 30.0},
        telemetry={"log_format": "json"},
    )
    stops = Stops()
    threading.Thread(target=stops.obey, daemon=True).start()
    with bound(stops):
        async with open_runtime(settings, graphs=[graph()]):
            print("working", flush=True)
            await stop.wait()


def main() -> None:
    """`stopping LEASE_SECONDS`, in a process of its own."""
    asyncio.run(work(float(sys.argv[1])))
