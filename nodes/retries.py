"""A task that LangGraph tries again counts the graphs and the `@task`s that it calls from the first again.

LangGraph finds what such a call came to by its place in the order of its task's calls. It begins the order anew for
questions alone when it tries a task again in the same attempt, so that a graph that had come to its end would be run
once more beside itself, as another one, and everything in it done twice. Outside governed runs nothing changes.
"""

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.pregel import _retry

from holdfast.nodes.carrying import carry
from holdfast.nodes.place import count_anew
from holdfast.nodes.session import session_here


def carry_retries() -> None:
    """See to it that retries count anew wherever there is a run. Doing it twice changes nothing."""
    carry(_retry, "_reset_interrupt_counter", _counting_anew)  # what LangGraph does between two tries


def _counting_anew(original: Any) -> Any:
    def reset(config: RunnableConfig) -> RunnableConfig:
        if session_here() is not None:
            count_anew(config)
        return original(config)  # type: ignore[no-any-return]

    return reset
