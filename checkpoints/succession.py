"""Which checkpoint of a thread is the latest: the one with the greatest id, in LangGraph's eyes.

LangGraph makes the ids from the wall clock, and keeps them ascending within a process. A worker whose clock is behind
that of the worker before it would write checkpoints that come before those it went on from, and whoever read the thread
next would find an old state. So a process never makes an id below one that it has read (a Lamport clock).
"""

from langgraph.checkpoint.base import id as ids

_LAST = "_last_v6_timestamp"


def follow(checkpoint_id: str) -> None:
    """Let every checkpoint that this process makes from now on come after this one."""
    try:
        made_at = ids.UUID(checkpoint_id).time
    except ValueError:
        return  # not made by LangGraph
    # Where LangGraph keeps its own ids ascending; it declares no type there.
    last: int | None = getattr(ids, _LAST)
    setattr(ids, _LAST, made_at if last is None else max(last, made_at))
