"""What a node has under way: the tasks and the calls that it must not end without."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Underway:
    """The tasks that a node's calls run in, and the calls that have been made and have not come back."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self._calls: set[object] = set()
        self._left = asyncio.Event()

    @contextmanager
    def task(self) -> Iterator[None]:
        """Makes the current task one that the node stops when it ends: it may outlive the `gather` it was made in."""
        task = asyncio.current_task()
        if task is None or task in self.tasks:
            yield
            return
        self.tasks.add(task)
        try:
            yield
        finally:
            self.tasks.discard(task)

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call, and whatever calls it makes in turn."""
        token, above = object(), _within.get()
        self._calls.add(token)
        entered = _within.set((*above, token))
        try:
            with self.task():
                yield
        finally:
            _within.reset(entered)
            self._leave(token)

    async def others(self) -> None:
        """Wait for the calls beside this one. It has ended for them, and so have those that it is made inside of: two
        that wait for each other both go on."""
        above = _within.get()
        for token in above:
            self._leave(token)
        while self._calls - set(above):
            self._left.clear()
            await self._left.wait()

    def _leave(self, token: object) -> None:
        self._calls.discard(token)
        self._left.set()


_underway: ContextVar[Underway | None] = ContextVar("holdfast_underway", default=None)
_within: ContextVar[tuple[object, ...]] = ContextVar("holdfast_within_calls", default=())


@contextmanager
def collecting() -> Iterator[Underway]:
    """Collects what the block's code has under way."""
    mine = Underway()
    token = _underway.set(mine)
    try:
        yield mine
    finally:
        _underway.reset(token)


def underway() -> Underway:
    """What the node that runs here has under way."""
    return _underway.get() or Underway()
