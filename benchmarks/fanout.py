"""One step that sends work to many branches: what keeping every branch's result costs."""

import asyncio
import gc
import operator
import time
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Annotated, Any
from uuid import uuid4

from langgraph.graph import START, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from benchmarks.alternatives import NOTHING, OURS, POOL, Savers, alternatives
from benchmarks.measuring import Cell, Measured, Rounds, table

NONE = "no checkpointer"
_NAP_SECONDS = 0.01


class Gathered(TypedDict, total=False):
    sizes: list[int]
    results: Annotated[list[int], operator.add]


def spreading() -> Any:
    """Sends each size to a branch of its own, which sleeps for 10 ms and answers."""

    async def branch(size: int) -> Gathered:
        await asyncio.sleep(_NAP_SECONDS)
        return {"results": [size]}

    builder = StateGraph(Gathered)
    builder.add_node("spread", lambda state: {})
    builder.add_node("branch", branch)  # type: ignore[arg-type]  # LangGraph's types know no state that is a number
    builder.add_edge(START, "spread")
    builder.add_conditional_edges("spread", lambda state: [Send("branch", size) for size in state["sizes"]])
    return builder.compile()


async def measure(graph: Any, savers: Savers | None, *, branches: int, runs: int) -> Measured:
    gc.collect()
    took: list[float] = []
    for _ in range(runs):
        bound = graph if savers is None else graph.copy(update={"checkpointer": savers()})
        place: Any = {"configurable": {"thread_id": str(uuid4())}}
        began = time.perf_counter()
        kept = {} if savers is None else {"durability": "sync"}
        result = await bound.ainvoke({"sizes": list(range(branches))}, place, **kept)
        took.append(time.perf_counter() - began)
        if len(result["results"]) != branches:
            raise AssertionError(f"{len(result['results'])} of {branches} branches answered")
    return Measured(runs / sum(took), median(took) * 1000, max(took) * 1000)


async def bench(rounds: int, widths: Sequence[int] = (10, 100, 1000)) -> str:
    graph = spreading()
    runs = {width: max(1, 100 // width) for width in widths}
    found = {width: Rounds() for width in widths}
    async with alternatives(graph, (rounds + 1) * sum(runs.values())) as offered:
        offers: dict[str, Savers | None] = {
            NONE: None,
            **{name: offered.savers[name] for name in (NOTHING, POOL, OURS)},
        }
        for width in widths:
            cells: dict[str, Cell] = {
                name: partial(measure, graph, using, branches=width, runs=runs[width]) for name, using in offers.items()
            }
            await Rounds().play(cells, 1)  # to warm up
            await found[width].play(cells, rounds)
    return "\n\n".join(_report(width, found[width]) for width in widths)


def _report(width: int, found: Rounds) -> str:
    rows = []
    for name in (OURS, POOL, NOTHING, NONE):
        low, high = found.range_of_ratio(NONE, name)
        rows.append(
            [
                name,
                f"{found.p50_ms(name):.0f}",
                f"**{found.ratio(NONE, name):.2f}** ({low:.2f} to {high:.2f})",
                f"{found.ratio(name, POOL):.2f}",
            ]
        )
    return f"### {width} branches\n\n" + table(
        ["saver", "ms", "times as long as no checkpointer", "times as fast as the pool"], rows
    )
