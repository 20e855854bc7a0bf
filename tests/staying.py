"""`holdfast worker` with a graph that stays at work until it is cancelled, however long the worker would wait for it.

What its node does it says on standard output: `at work`, and `cleaning up` when it is cancelled. With STAYING_STUBBORN
set it never ends to clean up.
"""

import asyncio
import os
from functools import partial
from typing import Any

from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from holdfast import govern
from holdfast.server import bootstrap
from holdfast.server.cli import main as holdfast


class State(TypedDict, total=False):
    said: str


async def stay(state: State) -> State:
    print("at work", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("cleaning up", flush=True)
        if "STAYING_STUBBORN" in os.environ:
            await asyncio.Event().wait()
    return {}


staying: Any = govern(
    StateGraph(State).add_node("stay", stay).add_edge(START, "stay").compile(), name="staying", version="1"
)


def main() -> None:
    """In a process of its own, in a folder whose langgraph.json names `staying`."""
    bootstrap.WorkerTerms = partial(bootstrap.WorkerTerms, grace_seconds=3600.0)  # type: ignore[misc, assignment]
    raise SystemExit(holdfast(["worker"]))
