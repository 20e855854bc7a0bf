"""Attached runs: a governed graph that another engine hosts (Studio, a bare `graph.ainvoke`).

Journal, budget, policy and inbox hold there; ownership (the lease and its fence) does not, because the host decides
who runs a thread.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from langchain_core.runnables import RunnableConfig

from holdfast.contracts.runs import RunStatus
from holdfast.nodes.session import RunSession


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedRequest:
    """What a host is told when a governed graph is invoked outside a run."""

    graph: Any
    """The governed graph; its `governance` holds name, version, toolset and defaults."""
    input: Any
    """The graph's input; None or `Command(resume=…)` goes on where the thread rests."""
    config: RunnableConfig
    """`configurable["thread_id"]` is the thread's key, where the host has threads."""
    context: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedOutcome:
    """How an attached invocation ended."""

    status: RunStatus
    """`completed`, `failed`, `cancelled`, or `interrupted` when it rests with a person."""
    output: Any = None
    """The thread's state, where the host keeps one."""
    error: BaseException | None = None


class AttachedHost(Protocol):
    """Opens and closes attached runs; the runtime is one."""

    async def open(self, request: AttachedRequest) -> RunSession:
        """The session of a new attached run, or of the one that rests on the thread when the invocation goes on
        with it (input None or a resume): same run, same budgets."""
        ...

    async def close(self, session: RunSession, outcome: AttachedOutcome) -> None:
        """Record how the invocation ended: rest when interrupted, finish otherwise."""
        ...


_hosts: list[AttachedHost] = []
_host: ContextVar[AttachedHost | None] = ContextVar("holdfast_host", default=None)


def register_host(host: AttachedHost) -> None:
    """Let `host` open attached runs, here first of all and anywhere in the process until it is unregistered."""
    _hosts.append(host)
    _host.set(host)


def unregister_host(host: AttachedHost) -> None:
    """Undo `register_host`."""
    _hosts.remove(host)
    if _host.get() is host:
        _host.set(None)


def host_here() -> AttachedHost | None:
    """The host of this context, else the one registered last, if any is still registered."""
    own = _host.get()
    if own is not None and own in _hosts:
        return own
    return _hosts[-1] if _hosts else None
