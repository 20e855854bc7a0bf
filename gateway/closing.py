"""Writing down what came of a call, also when its task is cancelled meanwhile."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")

_LONGEST_SECONDS = 5.0


async def written(closing: Coroutine[Any, Any, _T]) -> _T:
    """The result of `closing`, which is finished before a cancellation goes on: an answer that has been paid for must
    not be lost between its arrival and its record. It is given five seconds; a second cancellation ends it at once.
    """
    task = asyncio.ensure_future(closing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _settled(task)
        raise


async def _settled(task: asyncio.Future[Any]) -> None:
    try:
        await asyncio.wait({task}, timeout=_LONGEST_SECONDS)
    finally:
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()  # seen; the cancellation goes before it
