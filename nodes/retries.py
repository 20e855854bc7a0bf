"""A task that LangGraph tries again counts the graphs and the `@task`s that it calls from the first again.

LangGraph finds what such a call came to by its place in the order of its task's calls. It begins the order anew for
questions alone when it tries a task again in the same attempt, so that a graph that had come to its end would be run
once more beside itself, as another one, and everything in it done twice. Outside governed runs nothing changes.
"""

import functools
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.pregel import _retry

from holdfast.nodes.place import count_anew
from holdfast.nodes.session import session_here

_MARK = "__holdfast_original__"


def carry_retries() -> None:
    """See to it that retries count anew wherever there is a run. Doing it twice changes nothing."""
    original: Any = _retry._reset_interrupt_counter  # noqa: SLF001  # what LangGraph does between two tries
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def reset(config: RunnableConfig) -> RunnableConfig:
        if session_here() is not None:
            count_anew(config)
        return original(config)  # type: ignore[no-any-return]

    setattr(reset, _MARK, original)
    _retry._reset_interrupt_counter = reset  # noqa: SLF001
