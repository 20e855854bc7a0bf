"""Which door this code is inside of: what a door itself calls on its way out must not be carried through it again."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp

from holdfast.contracts.errors import HoldfastError

T = TypeVar("T")

_asking_model: ContextVar[bool] = ContextVar("holdfast_asking_model", default=False)
_performing: ContextVar[BaseTool | None] = ContextVar("holdfast_performing", default=None)


class Fatal(GraphBubbleUp):
    """Carries an error that must end the node past code that would make a tool's answer of it."""

    def __init__(self, error: HoldfastError) -> None:
        super().__init__(str(error))
        self.error = error


async def fatal_as_itself(work: Awaitable[T]) -> T:
    """The result of `work`; a `Fatal` in what it raises, in a group too, is raised as the error it carries."""
    try:
        return await work
    except Fatal as end:
        raise end.error from end
    except BaseExceptionGroup as group:
        if (fatal := group.subgroup(Fatal)) is not None:
            raise _first(fatal).error from group
        raise


def _first(group: BaseExceptionGroup[Fatal]) -> Fatal:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


@contextmanager
def asking_model() -> Iterator[None]:
    """In this block a chat model is the gateway's own way to a model, and is not carried."""
    token = _asking_model.set(True)
    try:
        yield
    finally:
        _asking_model.reset(token)


def is_asking_model() -> bool:
    """Whether a chat model that is asked here answers the gateway."""
    return _asking_model.get()


@contextmanager
def performing(tool: BaseTool | None) -> Iterator[None]:
    """In this block the executor performs `tool`. What its body calls is governed again."""
    token, asked = _performing.set(tool), _asking_model.set(False)
    try:
        yield
    finally:
        _performing.reset(token)
        _asking_model.reset(asked)


def is_performing(tool: BaseTool) -> bool:
    """Whether running `tool` here is the executor's own doing."""
    return _performing.get() is tool
