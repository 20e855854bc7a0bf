"""What the simulated runs do: two graphs, and the outside world that they act on.

The world is a file that outlives any process, and counts for itself: every question that a model was asked, every
arrival of a tool's request, every effect. It honours keys only where the tool says that it does.
"""

import operator
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from pathlib import Path
from typing import Annotated, Any

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send
from simulation import clocks
from typing_extensions import TypedDict

from holdfast import RunContext, Specialist, ToolCall, govern, tool
from holdfast.contracts.models import ModelRequest
from holdfast.gateway.scripted import ScriptedReply
from holdfast.graphs import refund_desk
from holdfast.graphs.refund_desk import script, store
from holdfast.runtime.leases import LeaseTerms

TOKENS_IN, TOKENS_OUT = 40, 10
"""What the world bills for each question."""
MODEL = "scripted:simulation.worlds:answer"

LEASE_SECONDS = 2.0
_TERMS = LeaseTerms(LEASE_SECONDS)
looked_at: ContextVar[float] = ContextVar("looked_at", default=inf)
"""When the call under way has last looked whether its run is still ours."""

_SCHEMA = """
create table if not exists questions (run text not null, agent text not null);
create table if not exists arrivals (tool text not null, key text not null, subject text not null);
create table if not exists effects (tool text not null, key text not null, subject text not null, late int not null);
"""


class World:
    """The outside, in one file. Safe between processes; what is done is done when a method returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "world.sqlite3"

    def ask(self, request: ModelRequest) -> None:
        """A model was asked, and will be billed."""
        with self._changing() as db:
            db.execute("insert into questions values (?, ?)", (request.run_id, request.agent_name))

    def act(self, tool: str, key: str, subject: str, *, honours_key: bool) -> None:
        """A tool's request has arrived, and is done."""
        with self._changing() as db:
            db.execute("insert into arrivals values (?, ?, ?)", (tool, key, subject))
            known = db.execute("select 1 from effects where tool = ? and key = ?", (tool, key)).fetchone()
            if known is None or not honours_key:
                late = clocks.true_seconds() - looked_at.get() > longest_pause()
                db.execute("insert into effects values (?, ?, ?, ?)", (tool, key, subject, late))

    def done(self, tool: str, key: str) -> dict[str, str] | None:
        """What was done under this key."""
        with self._changing() as db:
            found = db.execute("select subject from effects where tool = ? and key = ?", (tool, key)).fetchone()
        return None if found is None else {"done": found[0]}

    def was_done(self, tool: str, subject: str) -> bool:
        """What a person sees who looks."""
        return self.effects()[tool, subject] > 0

    def questions(self) -> Counter[str]:
        """How often the models were asked, by run."""
        return self._counted("select run from questions")

    def arrivals(self) -> Counter[tuple[str, str]]:
        """How many requests arrived, by tool and subject."""
        return self._counted("select tool, subject from arrivals")

    def effects(self) -> Counter[tuple[str, str]]:
        """How often something was done, by tool and subject. What was done late, a stopped process between the last
        look at its lease and the send, is outside what is promised: it counts where nothing else was done."""
        on_time = self._counted("select tool, subject from effects where not late")
        return on_time | self._counted("select distinct tool, subject from effects")

    def _counted(self, query: str) -> Counter[Any]:
        with self._changing() as db:
            return Counter(row if len(row) > 1 else row[0] for row in db.execute(query))

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        try:
            db.execute("pragma synchronous = off")  # processes die here, not machines
            db.execute("begin immediate")
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            yield db
            db.execute("commit")
        finally:
            db.close()


def longest_pause() -> float:
    """What is assumed between the last look at a lease and the send: the margin, less what this process's clock loses
    while a lease lasts."""
    return _TERMS.margin_seconds - clocks.seconds_lost(_TERMS.usable_seconds)


_here: World | None = None


def settle_in(folder: Path) -> World:
    """Let this process act on the world in `folder` from now on."""
    global _here
    store.configure(folder / "refunds.sqlite3")
    _here = World(folder)
    return _here


def world() -> World:
    """The world that this process acts on."""
    assert _here is not None, "settle in first"
    return _here


def answer(request: ModelRequest) -> ScriptedReply:
    """The only model there is."""
    world().ask(request)
    if request.agent_name in script._PARTS:
        content = script.answer(request)
    else:
        content = f"{request.agent_name}: {str(request.messages[-1]['content'])[:80]}"
    return ScriptedReply(content=content, input_tokens=TOKENS_IN, output_tokens=TOKENS_OUT)


# Errands: a plan, then several branches side by side, each of another kind, then a report.


class Errand(TypedDict):
    kind: str
    subject: str


class Errands(TypedDict, total=False):
    errands: list[Errand]
    plan: str
    done: Annotated[list[str], operator.add]
    report: str


@tool(effect="write", idempotent=True, timeout_seconds=2)
async def keyed(subject: str, *, call: ToolCall) -> dict[str, str]:
    """Do it; whoever does it honours the key."""
    world().act("keyed", call.idempotency_key, subject, honours_key=True)
    return {"done": subject}


def _look_up(key: str) -> dict[str, str] | None:
    return world().done("looked_up", key)


@tool(effect="write", reconcile=_look_up, timeout_seconds=0.5)
async def looked_up(subject: str, *, call: ToolCall) -> dict[str, str]:
    """Do it; whoever does it can be asked."""
    world().act("looked_up", call.idempotency_key, subject, honours_key=False)
    return {"done": subject}


@tool(effect="write", timeout_seconds=2)
async def blind(subject: str, *, call: ToolCall) -> dict[str, str]:
    """Do it; nobody can tell afterwards, except a person who goes there."""
    world().act("blind", call.idempotency_key, subject, honours_key=False)
    return {"done": subject}


@tool(effect="external", timeout_seconds=2)
async def asked(subject: str, *, call: ToolCall) -> dict[str, str]:
    """Do it, once a person has said so."""
    world().act("asked", call.idempotency_key, subject, honours_key=False)
    return {"done": subject}


TOOLS = {"keyed": keyed, "looked_up": looked_up, "blind": blind, "asked": asked}


async def plan(state: Errands, runtime: Runtime[RunContext]) -> Errands:
    reply = await runtime.context.models.call(f"plan {len(state['errands'])}", agent="planner")
    return {"plan": reply.content}


def sent(state: Errands) -> list[Send]:
    return [Send(_NODE_OF.get(errand["kind"], "errand"), errand) for errand in state["errands"]]


async def errand(state: Errand, runtime: Runtime[RunContext]) -> Errands:
    """Think, then act."""
    await runtime.context.models.call(f"how {state['subject']}", agent=state["kind"])
    result = await runtime.context.tools.call(state["kind"], {"subject": state["subject"]})
    return {"done": [f"{state['subject']}: {result.status}"]}


async def delegated(state: Errand, runtime: Runtime[RunContext]) -> Errands:
    """Two specialists side by side, each with a budget of its own; the second one acts."""

    async def adviser() -> str:
        return (await runtime.context.models.call(f"advise {state['subject']}", agent="adviser")).content

    async def doer() -> str:
        return (await runtime.context.tools.call("keyed", {"subject": state["subject"]})).status

    specialists: list[Specialist[str]] = [
        Specialist("adviser", adviser, budget_share=0.3),
        Specialist("doer", doer, budget_share=0.3),
    ]
    _, doing = await runtime.context.fan_out(specialists, limit=2)
    return {"done": [f"{state['subject']}: {doing.value}"]}


class Done(TypedDict, total=False):
    done: Annotated[list[str], operator.add]


class Inner(TypedDict, total=False):
    kind: str
    subject: str
    thought: str
    done: Annotated[list[str], operator.add]


async def think(state: Inner, runtime: Runtime[RunContext]) -> Inner:
    reply = await runtime.context.models.call(f"think {state['subject']}", agent="inner")
    return {"thought": reply.content}


async def act(state: Inner, runtime: Runtime[RunContext]) -> Inner:
    result = await runtime.context.tools.call("looked_up", {"subject": state["subject"]})
    return {"done": [f"{state['subject']}: {result.status}"]}


async def report(state: Errands, runtime: Runtime[RunContext]) -> Errands:
    reply = await runtime.context.models.call(f"report {sorted(state['done'])}", agent="reporter")
    return {"report": reply.content}


_NODE_OF = {"delegated": "delegated", "inner": "inner"}
TOOL_OF = {"delegated": "keyed", "inner": "looked_up"}
"""Which tool acts for the kinds that are not named after theirs."""


def _errands() -> Any:
    inner = StateGraph(Inner, context_schema=RunContext, output_schema=Done)
    inner.add_node("think", think).add_node("act", act)
    inner.add_edge(START, "think").add_edge("think", "act").add_edge("act", END)
    builder = StateGraph(Errands, context_schema=RunContext)
    builder.add_node("plan", plan).add_node("errand", errand).add_node("delegated", delegated)
    builder.add_node("inner", inner.compile()).add_node("report", report)
    builder.add_edge(START, "plan").add_conditional_edges("plan", sent, ["errand", "delegated", "inner"])
    for branch in ("errand", "delegated", "inner"):
        builder.add_edge(branch, "report")
    builder.add_edge("report", END)
    return govern(builder.compile(), name="errands", tools=list(TOOLS.values()))


ERRANDS = _errands()
REFUNDS = refund_desk.graph
GRAPHS = {"errands": ERRANDS, "refunds": REFUNDS}
# A version says what the code is, values of globals included, and is worked out when it is first asked for: here, while
# they are the same in every process, and not after `settle_in` has changed one.
VERSIONS = {name: graph.governance.version for name, graph in GRAPHS.items()}
KINDS = ("keyed", "looked_up", "blind", "asked", "delegated", "inner")
