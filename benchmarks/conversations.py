"""One long conversation on one thread: what a step takes at its start and at its end, and what it leaves on disk."""

import base64
import gc
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import astuple, dataclass
from itertools import pairwise
from random import Random
from statistics import median
from typing import Annotated, Any
from uuid import uuid4

import psycopg
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import _messages_delta_reducer, add_messages
from typing_extensions import TypedDict

from benchmarks.alternatives import OURS, POOL, Alternatives, alternatives
from benchmarks.measuring import table

WHOLE, DELTA = "add_messages", "delta messages"
_TABLES = "checkpoints, checkpoint_blobs, checkpoint_writes"
_WINDOW = 20
_seen: ContextVar[list[float]] = ContextVar("when the steps of this conversation began")


class Whole(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]


class Delta(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], DeltaChannel(_messages_delta_reducer)]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One, as it was measured."""

    first_ms: float
    """A step at its start."""
    middle_ms: float
    last_ms: float
    megabytes: float
    """On disk, indexes included."""
    raw_megabytes: float
    """Of values, before the database compresses them."""
    reload_ms: float
    """Until its state is there again."""


async def bench(rounds: int, lengths: Sequence[int] = (200, 800)) -> str:
    """The long one that writes all of its messages at every step is measured once: it takes as long as all others."""
    graphs = {name: talking(state) for name, state in ((WHOLE, Whole), (DELTA, Delta))}
    found: dict[tuple[int, str, str], list[Conversation]] = {}
    async with alternatives(graphs[DELTA], 1000) as offered:
        for saver in (OURS, POOL):
            await converse(offered, saver, graphs[DELTA], _WINDOW)  # to warm up
        for number in range(rounds):
            for length in lengths:
                for channel, graph in graphs.items():
                    for saver in (OURS, POOL) if number % 2 else (POOL, OURS):
                        if number == 0 or channel == DELTA or length < max(lengths):
                            measured = await converse(offered, saver, graph, length)
                            found.setdefault((length, channel, saver), []).append(measured)
    return "\n\n".join(_report(length, found) for length in lengths)


def talking(state: Any) -> Any:
    """Says 2 KB at every step that nothing can compress, until it has said as much as it was asked for."""

    async def say(said: Any) -> Any:
        _seen.get().append(time.perf_counter())
        text = base64.b64encode(Random(len(said["messages"])).randbytes(1536)).decode()
        return {"messages": [AIMessage(text)]}

    builder = StateGraph(state)
    builder.add_node("say", say)
    builder.add_edge(START, "say")
    builder.add_conditional_edges("say", lambda said: END if len(said["messages"]) > _steps(said) else "say")
    return builder.compile()


def _steps(said: Any) -> int:
    return int(said["messages"][0].content)


async def converse(offered: Alternatives, saver: str, graph: Any, length: int) -> Conversation:
    place: Any = {"configurable": {"thread_id": str(uuid4())}, "recursion_limit": length + 10}
    bound = graph.copy(update={"checkpointer": offered.savers[saver]()})
    async with await psycopg.AsyncConnection.connect(offered.addresses[saver], autocommit=True) as conn:
        await conn.execute(f"truncate {_TABLES}")
        gc.collect()
        _seen.set([])
        await bound.ainvoke({"messages": [HumanMessage(str(length))]}, place, durability="sync")
        steps = [(after - before) * 1000 for before, after in pairwise(_seen.get())]
        reloads = [await _reload_ms(bound, place, length) for _ in range(5)]
        sizes = await (
            await conn.execute(
                "select sum(pg_total_relation_size(name::regclass)), "
                "(select sum(octet_length(blob)) from checkpoint_blobs), "
                "(select sum(octet_length(blob)) from checkpoint_writes) from unnest(string_to_array(%s, ', ')) name",
                [_TABLES],
            )
        ).fetchone()
    on_disk, blobs, writes = map(float, sizes or (0, 0, 0))
    middle = len(steps) // 2
    return Conversation(
        median(steps[:_WINDOW]),
        median(steps[middle - _WINDOW // 2 : middle + _WINDOW // 2]),
        median(steps[-_WINDOW:]),
        on_disk / 1e6,
        (blobs + writes) / 1e6,
        median(reloads),
    )


async def _reload_ms(bound: Any, place: Any, length: int) -> float:
    began = time.perf_counter()
    state = await bound.aget_state(place)
    seconds = time.perf_counter() - began
    if len(state.values["messages"]) != length + 1:
        raise AssertionError(f"{len(state.values['messages'])} of {length + 1} messages came back")
    return seconds * 1000


def _report(length: int, found: dict[tuple[int, str, str], list[Conversation]]) -> str:
    middle = {
        (channel, saver): Conversation(*map(median, zip(*map(astuple, measured), strict=True)))
        for (steps, channel, saver), measured in found.items()
        if steps == length
    }
    rows = [
        [
            saver,
            channel,
            f"{one.first_ms:.1f}",
            f"{one.middle_ms:.1f}",
            f"{one.last_ms:.1f}",
            f"**{one.last_ms / one.first_ms:.2f}**",
            f"{one.megabytes:.1f}",
            f"{one.raw_megabytes:.1f}",
            f"**1/{middle[WHOLE, saver].megabytes / one.megabytes:.0f}**",
            f"{one.reload_ms:.0f}",
        ]
        for (channel, saver), one in sorted(middle.items(), key=lambda each: each[0][::-1])
    ]
    header = ["saver", "channel", "first 20 steps, ms", "middle 20", "last 20", "last to first", "MB on disk",
              "MB of values", "disk, to add_messages", "reload, ms"]  # fmt: skip
    once = "With all messages, measured once.\n\n" if length == max(steps for steps, _, _ in found) else ""
    return f"### {length} steps\n\n{once}" + table(header, rows)
