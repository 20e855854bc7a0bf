"""A task that works while there is work, and is gone when there is none."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context


class Shift:
    """Runs `work`, one at a time, in a task of its own: cancelling whoever asked for it does not stop it."""

    def __init__(self, work: Callable[[], Awaitable[None]], *, name: str) -> None:
        self._work = work
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """See to it that `work` runs, or goes on running."""
        if self._task is None or self._task.done():
            # In an empty context: it serves many runs, and must not carry the scope or the span of the first.
            self._task = asyncio.create_task(self._run(), name=self._name, context=Context())

    async def over(self) -> None:
        """Wait until `work` has come to its end; raises what it raised."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        await self._work()
