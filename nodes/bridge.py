"""From a synchronous node to the run's loop and back: what the node starts there stays governed and ends with it.

A synchronous node works in a thread of its own, not in the loop's small default pool: nodes that wait for their
subgraphs would fill that pool and wait for each other.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

from holdfast.contracts.errors import ConfigurationError
from holdfast.nodes.session import RunSession
from holdfast.nodes.underway import underway

T = TypeVar("T")

_END = object()


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own, with the context variables of here. A thread cannot be cancelled: when this
    is, the thread is left behind and what it still asks for is refused."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    context = copy_context()

    def settle(act: Callable[[Any], None], value: object) -> None:
        if not answer.done():
            act(value)

    def tell(act: Callable[[Any], None], value: object) -> None:
        with suppress(RuntimeError):  # the loop has been closed, and nobody waits for the answer any more
            loop.call_soon_threadsafe(settle, act, value)

    def run() -> None:
        try:
            result = context.run(work)
        except StopIteration as error:
            tell(answer.set_exception, RuntimeError(f"StopIteration: {error}"))
        except KeyboardInterrupt as error:  # nobody's Ctrl-C, which reaches the main thread alone
            tell(answer.set_exception, RuntimeError(f"KeyboardInterrupt: {error}"))
        except BaseException as error:  # noqa: BLE001  # carried to whoever awaits
            tell(answer.set_exception, error)
        else:
            tell(answer.set_result, result)

    threading.Thread(target=run, name="holdfast-node", daemon=True).start()
    return await answer


def on_loop(session: RunSession, make: Callable[[], Coroutine[Any, Any, T]], *, what: str) -> T:
    """Run the coroutine of `make` on the run's loop and wait for it, from a synchronous node's thread.

    Raises `ConfigurationError` on the loop's own thread, where waiting would wait for itself.
    """
    return _start(session, make, what).result()


def iterate_on_loop(session: RunSession, make: Callable[[], AsyncIterator[T]], *, what: str) -> Iterator[T]:
    """The items of an asynchronous iterator that lives on the run's loop, as they come."""
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()

    async def pump() -> None:
        async for item in make():
            items.put(item)

    future = _start(session, pump, what)
    future.add_done_callback(lambda _: items.put(_END))
    return _drain(items, future)


def _drain(items: "queue.SimpleQueue[Any]", future: "Future[None]") -> Iterator[Any]:
    try:
        while (item := items.get()) is not _END:
            yield item
        future.result()
    finally:
        future.cancel()


def _start(session: RunSession, make: Callable[[], Coroutine[Any, Any, T]], what: str) -> "Future[T]":
    if _on_thread_of(session.loop):
        raise ConfigurationError(
            f"{what} was called synchronously on the event loop's own thread, where it would wait for itself; "
            "await its asynchronous twin, or make the node a plain `def`"
        )
    mine = underway()

    async def counted() -> T:
        with mine.task():
            return await make()

    return asyncio.run_coroutine_threadsafe(counted(), session.loop)


def _on_thread_of(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
