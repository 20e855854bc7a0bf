"""How long work for a run may wait for the store: no longer than its lease holds by the worker's clock, nor than its
deadline. Set around the attempt and around each node; read where the store waits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Patience = Callable[[], float]
"""The seconds that are left now. They may become more, as those of a lease that is prolonged; 0 is the end."""

_patience: ContextVar[Patience | None] = ContextVar("holdfast_patience", default=None)


def patience_here() -> Patience | None:
    """That of the work that runs here; None where it is nobody's but its own, and the store's terms alone hold."""
    return _patience.get()


@contextmanager
def patient(limit: Patience) -> Iterator[None]:
    """Let nothing in the block wait longer than `limit`, nor than what held before."""
    outer = _patience.get()
    token = _patience.set(limit if outer is None else lambda: min(outer(), limit()))
    try:
        yield
    finally:
        _patience.reset(token)


@contextmanager
def unhurried() -> Iterator[None]:
    """For what is done here for others too: it does not end with the one who happens to do it."""
    token = _patience.set(None)
    try:
        yield
    finally:
        _patience.reset(token)
