"""The practice drill's graphs, and the process that is killed while it runs them.

What the graphs do to the world is written into files of `FOLDER`: an outside store, which outlives any process and
counts for itself. A payment stops for good where `HANGS` says so, after telling on standard output that it got there.
"""

import asyncio
import operator
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from holdfast import Principal, RunContext, ToolCall, govern, open_runtime, tool
from holdfast.contracts.models import ModelRequest
from holdfast.contracts.tenancy import Tenant
from holdfast.server.settings import load_settings

FOLDER = Path(os.environ.get("DRILL_FOLDER", "."))
HANGS = dict(hang.split("=") for hang in os.environ.get("DRILL_HANGS", "").split())
"""Where an order's payment stops: `after` its effect is committed, or `before`."""
DANA = Principal(user_id="dana", tenants=("acme",), roles=("approver",))


class State(TypedDict, total=False):
    order: str
    plan: str
    payment: dict[str, Any]
    report: str


class World:
    """The outside: what was paid, and what the models were asked."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "world.sqlite3"

    def pay(self, key: str, order: str) -> None:
        """Pay; the provider keeps no second payment under one key."""
        self._change("insert or ignore into payments values (?, ?)", key, order)

    def paid(self, key: str) -> str | None:
        """The order that was paid under this key."""
        rows = self._read("select ordered from payments where key = ?", key)
        return rows[0][0] if rows else None

    def ask(self, agent: str) -> None:
        self._change("insert into questions values (?)", agent)

    @property
    def payments(self) -> list[str]:
        return [row[0] for row in self._read("select ordered from payments order by ordered")]

    @property
    def questions(self) -> list[str]:
        return [row[0] for row in self._read("select agent from questions order by rowid")]

    def _read(self, query: str, *values: str) -> list[Any]:
        with self._opened() as connection:
            return connection.execute(query, values).fetchall()

    def _change(self, statement: str, *values: str) -> None:
        with self._opened() as connection, connection:
            connection.execute(statement, values)

    def _opened(self) -> Any:
        connection = sqlite3.connect(self._path, timeout=10)
        connection.execute("create table if not exists payments (key text primary key, ordered text not null)")
        connection.execute("create table if not exists questions (agent text not null)")
        return closing(connection)


def answer(request: ModelRequest) -> str:
    """The fake model."""
    World(FOLDER).ask(request.agent_name)
    return f"{request.agent_name}: {request.messages[-1]['content']}"


async def think(state: State, runtime: Runtime[RunContext]) -> State:
    reply = await runtime.context.models.call(f"plan {state['order']}", agent="planner")
    return {"plan": reply.content}


async def act(state: State, runtime: Runtime[RunContext]) -> State:
    result = await runtime.context.tools.call("pay", {"order": state["order"]})
    return {"payment": {"status": result.status, "output": result.output, "error_type": result.error_type}}


async def tell(state: State, runtime: Runtime[RunContext]) -> State:
    reply = await runtime.context.models.call(f"report {state['payment']['status']}", agent="reporter")
    return {"report": reply.content}


async def _pay(order: str, call: ToolCall) -> dict[str, str]:
    if HANGS.get(order) == "before":
        await _arrive(order)
    World(FOLDER).pay(call.idempotency_key, order)
    if HANGS.get(order) == "after":
        await _arrive(order)
    return {"paid": order}


async def _arrive(order: str) -> None:
    print(f"arrived {order}", flush=True)  # what the parent waits for
    await asyncio.Event().wait()


@tool(name="pay", effect="write", idempotent=True)
async def pay_with_key(order: str, *, call: ToolCall) -> dict[str, str]:
    """Pay an order; the provider honours the key."""
    return await _pay(order, call)


def _look_up(key: str) -> dict[str, str] | None:
    order = World(FOLDER).paid(key)
    return None if order is None else {"paid": order}


@tool(name="pay", effect="write", reconcile=_look_up)
async def pay_with_look_up(order: str, *, call: ToolCall) -> dict[str, str]:
    """Pay an order; the provider can be asked."""
    return await _pay(order, call)


@tool(name="pay", effect="write")
async def pay_blindly(order: str, *, call: ToolCall) -> dict[str, str]:
    """Pay an order; nobody can tell afterwards."""
    return await _pay(order, call)


def _graph(name: str, pay: Any) -> Any:
    builder = StateGraph(State, context_schema=RunContext)
    builder.add_node("think", think).add_node("act", act).add_node("tell", tell)
    builder.add_edge(START, "think").add_edge("think", "act").add_edge("act", "tell").add_edge("tell", END)
    # Its version is named: the folder of the world is another in each process.
    return govern(builder.compile(), name=name, version="1", tools=[pay], default_model="scripted:drill:answer")


GRAPHS = {
    "keyed": _graph("keyed", pay_with_key),
    "looked_up": _graph("looked_up", pay_with_look_up),
    "blind": _graph("blind", pay_blindly),
}


class Ledger(TypedDict, total=False):
    order: str
    log: Annotated[list[Any], operator.add]


@tool(effect="external")
async def transfer(order: str, amount: str, *, call: ToolCall) -> dict[str, str]:
    """Transfer the amount of an order."""
    World(FOLDER).pay(call.idempotency_key, f"{order} {amount}")
    return {"paid": order, "amount": amount}


async def transfer_once(state: Ledger, runtime: Runtime[RunContext]) -> Ledger:
    result = await runtime.context.tools.call("transfer", {"order": state["order"], "amount": "10.00"})
    return {"log": [f"{state['order']}: {result.status} {result.text}"]}


def _transfers() -> Any:
    builder = StateGraph(Ledger, context_schema=RunContext).add_node("transfer", transfer_once)
    return govern(builder.add_edge(START, "transfer").compile(), name="transfers", version="1", tools=[transfer])


TRANSFERS = _transfers()


async def ask(thread: str) -> None:
    """Start a transfer that a person must approve, and be gone as soon as they are asked."""
    async with open_runtime(load_settings(tenants=[Tenant(tenant_id="acme")], principals={"dana": DANA})) as runtime:
        run = await runtime.start(TRANSFERS, {"order": "A"}, tenant="acme", thread=thread)
        print((await run.result(60)).status.value, flush=True)


async def work(lease_seconds: float, runs: list[tuple[str, str]]) -> None:
    """Start a run of a graph on each thread, and go on until killed."""
    worker = {"lease_ttl_seconds": lease_seconds, "poll_seconds": 0.1, "slots": 16}
    settings = load_settings(tenants=[Tenant(tenant_id="acme")], principals={"dana": DANA}, worker=worker)
    async with open_runtime(settings, graphs=GRAPHS.values()) as runtime:
        for graph, thread in runs:
            await runtime.start(graph, {"order": thread}, tenant="acme", thread=thread)
        await asyncio.Event().wait()


def main() -> None:
    """`drill LEASE_SECONDS GRAPH=THREAD…`, in a process of its own."""
    seconds, *runs = sys.argv[1:]
    asyncio.run(work(float(seconds), [(graph, thread) for graph, _, thread in (run.partition("=") for run in runs)]))
