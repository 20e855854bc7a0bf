"""The last look at the lease: the first thing that the code does which acts.

A call is let through, and its body begins later. LangChain gives a tool a task of its own, and what is synchronous a
thread, for which it may have to wait; a model may have to be built. Meanwhile the process can be stopped or its loop
blocked, and the lease run out. So the methods of tools and chat models in which their own code begins look once more,
wherever a call of ours is on its way through them. Elsewhere nothing changes.
"""

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from types import FunctionType
from typing import Any
from weakref import WeakSet

from holdfast.contracts.scope import Scope

_BODIES = ("_run", "_arun", "_generate", "_agenerate", "_stream", "_astream")
"""Where the code of a LangChain tool or chat model begins."""

_on_its_way: ContextVar[Scope | None] = ContextVar("holdfast_call_on_its_way", default=None)
_looking: WeakSet[type] = WeakSet()


class on_its_way:  # noqa: N801  # reads as a word: `with on_its_way(scope):`
    """In this block a call of `scope`'s is on its way to the code that acts."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        self._token = _on_its_way.set(self._scope)

    def __exit__(self, *exc: object) -> None:
        _on_its_way.reset(self._token)


def look_last() -> None:
    """Raise `LeaseLost` where a call is on its way for a run whose lease has run out."""
    if (scope := _on_its_way.get()) is not None:
        scope.require_ours()


def looks_last(kind: type) -> None:
    """See to it that the bodies of this class of tools or models look last. Doing it twice changes nothing."""
    for each in kind.__mro__:
        if each in _looking or each is object:
            continue
        _looking.add(each)
        for name in _BODIES:
            if isinstance(body := vars(each).get(name), FunctionType):
                setattr(each, name, _looking_first(body))


def _looking_first(body: Callable[..., Any]) -> Callable[..., Any]:
    async def begin(*args: Any, **arguments: Any) -> Any:
        look_last()
        return await body(*args, **arguments)

    def begin_here(*args: Any, **arguments: Any) -> Any:
        look_last()
        return body(*args, **arguments)

    return functools.wraps(body)(begin if inspect.iscoroutinefunction(body) else begin_here)
