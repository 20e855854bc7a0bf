"""What one run brings to its nodes: identity, terms and doors. Set by the engine, or by an attached host."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast.contracts.deadline import Clock, Deadline
from holdfast.contracts.errors import NotGoverned, RunCancelled
from holdfast.contracts.ids import BudgetId
from holdfast.contracts.limits import Limits
from holdfast.contracts.models import ModelDoor
from holdfast.contracts.ports import Approvals, Events, Ids, Ledger, Runs, Store
from holdfast.contracts.runs import Owner, RunIdentity
from holdfast.contracts.tenancy import Principal, TenantContext
from holdfast.contracts.verdicts import Autonomy
from holdfast.nodes.place import Locator, locator

if TYPE_CHECKING:
    from holdfast.gateway.tools import ToolExecutor
    from holdfast.gateway.toolset import Toolset


@dataclass(slots=True)
class Cancellation:
    """Whether someone wants the run to stop. The engine's heartbeat or a step's answer sets it; nodes read it."""

    requested: bool = False
    by: str | None = None
    reason: str | None = None

    def request(self, *, by: str | None = None, reason: str | None = None) -> None:
        """Ask the run to stop before its next node. The first to ask is the one that is named."""
        if not self.requested:
            self.requested, self.by, self.reason = True, by, reason

    def require_wanted(self, run_id: str) -> None:
        """Raise `RunCancelled` when the run was asked to stop."""
        if self.requested:
            raise RunCancelled(
                f"run {run_id} was asked to stop" + (f": {self.reason}" if self.reason else ""),
                by=self.by,
                reason=self.reason,
            )


@dataclass(slots=True, kw_only=True)
class RunSession:
    """Everything a run needs while one attempt of it runs in this process."""

    identity: RunIdentity
    owner: Owner
    tenant: TenantContext
    graph_name: str
    limits: Limits
    deadline: Deadline
    budgets: tuple[BudgetId, ...]
    """Who pays, the innermost first: run, tenant."""
    autonomy: Autonomy
    store: Store
    models: ModelDoor
    executor: "ToolExecutor"
    toolset: "Toolset"
    clock: Clock
    ids: Ids
    loop: asyncio.AbstractEventLoop
    """The loop the run lives on: synchronous nodes reach their subgraphs and models through it."""
    still_ours: Callable[[], bool]
    """By our own clock: is the lease still held? Asked before each node and before each send."""
    cancellation: Cancellation = field(default_factory=Cancellation)
    default_model: str | None = None
    """The model that the route `default` means when the configuration names none."""
    fork: str = ""
    locator: Locator = locator
    """Reads where a node's calls stand."""
    trace_parent: str | None = None
    """W3C traceparent of the run's span, so that later attempts link to it."""
    node_slots: asyncio.Semaphore | None = None
    """How many nodes of the run may work at once. (LangGraph's `max_concurrency` holds back checkpoints too.)"""
    cleanup_seconds: float = 5.0
    """How long a node that was cancelled may clean up before it is left behind."""
    approver: Principal | None = None
    """Attached runs only: who decides when the host itself resumes an interrupt."""
    approval_expires_seconds: float = 604_800.0
    """How long a person has to decide."""
    interrupted: bool = False
    """Whether a node of this attempt paused for a person."""
    asked: set[str] = field(default_factory=set)
    """The interrupts that this attempt has put into the inbox, by LangGraph's id."""
    asked_in: dict[str, str] = field(default_factory=dict)
    """In which part of its task each question was asked, of those that tools' bodies ask, by LangGraph's id."""
    failures: list[tuple[BaseException, str]] = field(default_factory=list, repr=False)
    """What nodes of this attempt failed with, and the innermost node that each came from."""

    def failed_at(self, node: str, error: BaseException) -> None:
        """Remember where `error` came from; the nodes around, which it passes through, change nothing."""
        if all(known is not error for known, _ in self.failures):
            self.failures.append((error, node))

    def step_of(self, error: BaseException) -> str:
        """The innermost node that `error` came from; `run` when it came from none."""
        return next((node for known, node in self.failures if known is error), "run")

    @property
    def runs(self) -> Runs:
        """The store's runs."""
        return self.store.runs

    @property
    def approvals(self) -> Approvals:
        """The store's inbox."""
        return self.store.approvals

    @property
    def events(self) -> Events:
        """The store's events."""
        return self.store.events

    @property
    def ledger(self) -> Ledger:
        """The store's budgets."""
        return self.store.ledger


_session: ContextVar[RunSession | None] = ContextVar("holdfast_session", default=None)


def session_here() -> RunSession | None:
    """The session of the run that this code belongs to, if any."""
    return _session.get()


def session_of(what: str) -> RunSession:
    """The session of the run that this code belongs to; raises `NotGoverned` outside one."""
    session = _session.get()
    if session is None:
        raise NotGoverned(
            f"{what} was called outside a governed run. Run the graph with Runtime.start(...)",
            action=what,
            rule="session.absent",
        )
    return session


class entered_session:  # noqa: N801  # reads as a word: `with entered_session(session):`
    """Makes `session` the current one for the block. The block must not span a `yield` of an async generator."""

    def __init__(self, session: RunSession | None) -> None:
        self._entered = session

    def __enter__(self) -> RunSession | None:
        self._token = _session.set(self._entered)
        return self._entered

    def __exit__(self, *exc: object) -> None:
        _session.reset(self._token)
