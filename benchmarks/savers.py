"""Durable runs of five steps: our saver against LangGraph's own, and against one that keeps nothing."""

import asyncio
import base64
import gc
import time
from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from random import Random
from typing import Annotated, Any
from uuid import uuid4

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict

from benchmarks.alternatives import NOTHING, ONE, OURS, POOL, Savers, alternatives
from benchmarks.measuring import Cell, Measured, Rounds, quantile, table

STEPS = 5
_seen: ContextVar[list[float]] = ContextVar("when the steps of this run began")


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    document: dict[str, Any]


def five_steps() -> Any:
    """Each step says something and changes a document; about 2 KB of state in the end."""
    text = [base64.b64encode(Random(n).randbytes(150)).decode() for n in range(STEPS)]
    builder = StateGraph(State)

    def step(n: int) -> Any:
        async def node(state: State) -> State:
            _seen.get().append(time.perf_counter())
            return {"messages": [AIMessage(text[n])], "document": {"step": n, "text": text[n]}}

        return node

    for n in range(STEPS):
        builder.add_node(f"step{n}", step(n))
        builder.add_edge(f"step{n - 1}" if n else START, f"step{n}")
    return builder.compile()


async def measure(graph: Any, savers: Savers, *, runs: int, at_once: int) -> Measured:
    steps: list[float] = []
    todo = iter(range(runs))

    async def work() -> None:
        for _ in todo:
            _seen.set([])
            bound = graph.copy(update={"checkpointer": savers()})
            place = {"configurable": {"thread_id": str(uuid4())}}
            await bound.ainvoke({"messages": [HumanMessage("go")]}, place, durability="sync")
            steps.extend(after - before for before, after in pairwise(_seen.get()))

    gc.collect()
    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    seconds = time.perf_counter() - began
    return Measured(runs / seconds, quantile(steps, 0.5) * 1000, quantile(steps, 0.99) * 1000)


async def bench(rounds: int, loads: Sequence[int]) -> str:
    runs = {load: max(30, min(384, 10 * load)) for load in loads}
    found = {load: Rounds() for load in loads}
    graph = five_steps()
    async with alternatives(graph, (rounds + 1) * sum(runs.values())) as offered:
        for load in loads:
            cells: dict[str, Cell] = {
                name: partial(measure, graph, using, runs=runs[load], at_once=load)
                for name, using in offered.savers.items()
            }
            await Rounds().play(cells, 1)  # to warm up
            await found[load].play(cells, rounds)
    return "\n\n".join(_report(load, found[load]) for load in loads)


def _report(load: int, found: Rounds) -> str:
    rows = []
    for name in (OURS, POOL, ONE, NOTHING):
        low, high = found.range_of_ratio(name, POOL)
        rows.append(
            [
                name,
                f"{found.per_second(name):.0f}",
                f"**{found.ratio(name, POOL):.2f}** ({low:.2f} to {high:.2f})",
                f"{found.ratio(name, NOTHING):.0%}",
                f"{found.p50_ms(name):.1f}",
                f"{found.p99_ms(name):.1f}",
            ]
        )
    header = ["saver", "runs/s", "to the pool", "of the ceiling", "step p50, ms", "step p99, ms"]
    return f"### {load} at once\n\n" + table(header, rows)
