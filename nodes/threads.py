"""Threads that a node starts belong to it: they are given its context, as OpenTelemetry's instrumentation does.

Without it a model called in `ThreadPoolExecutor().submit(...)` would have no scope, and would be neither paid for nor
recorded. Outside governed nodes nothing changes.
"""

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from threading import Thread
from typing import Any

from holdfast.contracts.scope import entered, scope_here
from holdfast.nodes.carrying import carry


def carry_threads() -> None:
    """See to it that threads and pools carry the scope of whoever uses them. Doing it twice changes nothing."""
    carry(ThreadPoolExecutor, "submit", _submit)
    carry(Thread, "start", _start)


def _submit(original: Any) -> Any:
    def submit(self: ThreadPoolExecutor, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if scope_here() is None:
            return original(self, fn, *args, **kwargs)  # type: ignore[no-any-return]
        context = copy_context()
        with entered(None):  # the pool may start a thread now, which outlives this node and must not carry its scope
            return original(self, context.run, fn, *args, **kwargs)  # type: ignore[no-any-return]

    return submit


def _start(original: Any) -> Any:
    def start(self: Thread) -> None:
        if scope_here() is not None:
            self.run = functools.partial(copy_context().run, self.run)  # type: ignore[method-assign]
        original(self)

    return start
