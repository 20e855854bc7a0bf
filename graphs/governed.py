"""What a governed graph does otherwise than the graph it was: it never runs outside a run.

The engine's run, or the run of the node it is called in, is passed through. Anywhere else an attached run is opened
for it by the process's host, and where there is none it refuses.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.errors import GraphBubbleUp, ParentCommand
from langgraph.pregel import Pregel
from langgraph.types import StateUpdate

from holdfast.contracts.errors import NotGoverned, RunCancelled
from holdfast.contracts.runs import RunStatus
from holdfast.contracts.verdicts import Autonomy
from holdfast.contracts.workers import ServedGraph
from holdfast.gateway.toolset import Toolset
from holdfast.graphs.stored import StoredTypes
from holdfast.nodes.bridge import iterate_on_loop
from holdfast.nodes.context import RunContext
from holdfast.nodes.hosting import AttachedHost, AttachedOutcome, AttachedRequest, host_here
from holdfast.nodes.place import has_checkpointer, parent_context
from holdfast.nodes.session import RunSession, entered_session, session_here
from holdfast.policies.compatibility import Compatibility


@dataclass(frozen=True, kw_only=True)
class Governance:
    """The terms a graph was governed with."""

    name: str
    versioned: Callable[[], str] = field(repr=False)
    stored: Callable[[], StoredTypes] = field(repr=False)
    compatible: Compatibility = field(default_factory=Compatibility)
    """Which other versions' runs the graph goes on with."""
    toolset: Toolset = field(repr=False)
    types: tuple[type, ...] = field(default=(), repr=False)
    """Classes of data that the graph's state may hold whether or not its code names them."""
    policies: tuple[str, ...] = ()
    """Cedar policies of the graph's own, beside the configuration's."""
    default_model: str | None = None
    """The model that the route `default` means when the configuration names none."""
    autonomy: Autonomy | None = None
    """None: as the configuration says."""

    @cached_property
    def version(self) -> str:
        """What the graph's runs are pinned to."""
        return self.versioned()

    @cached_property
    def stored_types(self) -> StoredTypes:
        """The classes that the graph's state may hold besides those that its schemas declare."""
        return self.stored()

    @property
    def served(self) -> ServedGraph:
        """What a worker that has this graph says of it."""
        return ServedGraph(name=self.name, version=self.version, compatible=self.compatible.texts)


class GovernedGraph(Pregel[Any, Any, Any, Any]):
    """A compiled graph under our terms. Made by `govern()` alone, as a subclass of the graph's own class."""

    governance: ClassVar[Governance]

    async def astream(  # LangGraph's overloads in one; everything is passed on as it came
        self,
        input: Any,  # noqa: A002  # LangGraph's word
        config: RunnableConfig | None = None,
        *,
        context: Any = None,
        **options: Any,
    ) -> AsyncIterator[Any]:
        """LangGraph's `astream`, through which `ainvoke` and `astream_events` go as well. Raises `NotGoverned` where
        there is neither a run nor a host to open one."""
        if context is None:
            context = self._default_context(config)
        stream: Any = super().astream(input, config, context=context, **options)  # an async generator
        if session_here() is None:
            request = AttachedRequest(graph=self, input=input, config=self._merged(config), context=context)
            stream = _attached(self, _host(self.governance.name), request, stream)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk

    def stream(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """LangGraph's `stream`, through which `invoke` goes as well: for the synchronous nodes of a governed run."""
        session = session_here()
        if session is None:
            raise NotGoverned(
                f"graph {self.governance.name!r} is governed: synchronously it runs only inside a run's own nodes. Use "
                "Runtime.start(...) or its blocking twin, or `await graph.ainvoke(...)` inside "
                "`async with open_runtime():`",
                action=f"{self.governance.name}.invoke",
                rule="session.absent",
            )
        return iterate_on_loop(session, lambda: self.astream(input, config, **options), what=f"{self.name}.invoke()")

    async def abulk_update_state(
        self, config: RunnableConfig, supersteps: Sequence[Sequence[StateUpdate]]
    ) -> RunnableConfig:
        """LangGraph's own, through which `aupdate_state` goes as well. It asks conditional edges where the edited state
        leads: code of the graph's, which runs in an attached run of its own. One that rests on the thread goes on
        resting."""
        edit = super().abulk_update_state
        if session_here() is not None or (host := host_here()) is None:
            return await edit(config, supersteps)  # an edge that is asked outside a run says so
        given = {"update_state": [[update._asdict() for update in step] for step in supersteps]}
        session = await host.open(AttachedRequest(graph=self, input=given, config=self._merged(config), context=None))
        outcome = AttachedOutcome(status=RunStatus.CANCELLED)
        try:
            with entered_session(session):
                edited = await edit(config, supersteps)
            outcome = AttachedOutcome(status=RunStatus.COMPLETED)
        except Exception as error:
            outcome = _ended_by(error)
            raise
        finally:
            await host.close(session, outcome)
        return edited

    def _default_context(self, config: RunnableConfig | None) -> Any:
        """LangGraph leaves `runtime.context` None when none is given, whatever its schema; a subgraph inherits its
        parent's."""
        schema = self.context_schema
        if not (isinstance(schema, type) and issubclass(schema, RunContext)):
            return None
        return schema() if parent_context(config) is None else None

    def _merged(self, config: RunnableConfig | None) -> RunnableConfig:
        own, given = (self.config or {}).get("configurable") or {}, (config or {}).get("configurable") or {}
        return {**(self.config or {}), **(config or {}), "configurable": {**own, **given}}


def _host(name: str) -> AttachedHost:
    host = host_here()
    if host is None:
        raise NotGoverned(
            f"graph {name!r} is governed and there is no run here. Run it with Runtime.start(...), or await it inside "
            "`async with open_runtime():`",
            action=name,
            rule="session.absent",
        )
    return host


async def _attached(
    graph: GovernedGraph, host: AttachedHost, request: AttachedRequest, stream: Any
) -> AsyncIterator[Any]:
    """The graph's stream as an attached run. The session is entered step by step: a context variable that is set
    across a `yield` would leak into whoever iterates."""
    session = await host.open(request)
    outcome = AttachedOutcome(status=RunStatus.CANCELLED)
    try:
        while True:
            with entered_session(session):
                try:
                    chunk = await anext(stream)
                except StopAsyncIteration:
                    break
            yield chunk
        outcome = await _outcome(graph, session, request)
    except GraphBubbleUp as signal:  # below another graph, whose affair the rest is
        done = isinstance(signal, ParentCommand)
        outcome = AttachedOutcome(status=RunStatus.COMPLETED if done else RunStatus.INTERRUPTED)
        raise
    except Exception as error:
        outcome = _ended_by(error)
        raise
    finally:
        with entered_session(session):
            await stream.aclose()
        await host.close(session, outcome)


def _ended_by(error: Exception) -> AttachedOutcome:
    status = RunStatus.CANCELLED if isinstance(error, RunCancelled) else RunStatus.FAILED
    return AttachedOutcome(status=status, error=error)


async def _outcome(graph: GovernedGraph, session: RunSession, request: AttachedRequest) -> AttachedOutcome:
    """Whether the stream ended because the graph did. A breakpoint of the host's ends it without any node pausing."""
    output, waits = None, session.interrupted
    if isinstance(graph.checkpointer, BaseCheckpointSaver) or has_checkpointer(request.config):
        snapshot = await graph.aget_state(request.config)
        output, waits = snapshot.values, waits or bool(snapshot.next)
    status = RunStatus.INTERRUPTED if waits else RunStatus.COMPLETED
    return AttachedOutcome(status=status, output=output)
