"""One execution on a thread, from its request to its result."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from holdfast.contracts.approvals import Approval
from holdfast.contracts.canonical import digest
from holdfast.contracts.errors import AttemptsExhausted, HoldfastError, RuntimeErrorRecord
from holdfast.contracts.ids import RunId, TenantId, ThreadId
from holdfast.contracts.limits import Limits, Usage
from holdfast.contracts.retention import LegalHold
from holdfast.contracts.tenancy import TenantContext


class RunStatus(StrEnum):
    """The states of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    """Rests with a person; its lease is released and its clock stopped."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether the run has ended; nothing reopens it."""
        return self in {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}

    @property
    def resting(self) -> bool:
        """Whether nothing moves until a person or a new run does."""
        return self.final or self is RunStatus.INTERRUPTED


class GraphVersion(NamedTuple):
    """Which build of a graph: what a run is pinned to, and what a worker can serve."""

    name: str
    version: str


class RunIdentity(BaseModel):
    """The specification's run context: what every step knows of its run."""

    model_config = ConfigDict(frozen=True)

    run_id: RunId
    thread_id: ThreadId
    tenant_id: TenantId
    deadline_ms: int | None
    """Milliseconds the run had left when the attempt began; None: no deadline."""
    policy_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """Where a run comes from that goes on, on a new thread, from a copy of another's history."""

    run_id: RunId
    """The run that wrote the checkpoint."""
    checkpoint_id: str
    salt: str
    """Salts the identity of every call on the new thread: none of them is one of the original's."""
    by: str
    """Who asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """Where a run comes from that goes on where another of its thread ended. What that one had spent is spent."""

    run_id: RunId
    """The run that ended."""
    worked_seconds: float
    """What it had used of its deadline, together with those that it went on for."""
    by: str
    """Who asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A run that someone wants, before it is admitted."""

    run_id: RunId
    thread_key: str
    """The user's own name for the conversation."""
    graph_name: str
    graph_version: str
    tenant: TenantContext
    input: bytes
    """The graph's input as the checkpoint serializer wrote it (`input_type` names its form)."""
    input_type: str
    context: dict[str, Any] | None
    """The graph's context settings, plain JSON, nothing secret."""
    limits: Limits
    max_attempts: int = 5
    """Attempts in a row that may lose their worker before the run counts as dead. Pauses for a person and orderly
    shutdowns do not count."""
    trace_parent: str | None = None
    """W3C traceparent of the caller, so that every attempt links to it."""
    attached: bool = False
    """Hosted by another engine: it is born running, and nobody claims it."""
    origin: Forked | Resumed | None = None
    """None: it begins with its own input. Otherwise it goes on from a checkpoint, and `input` is a fork's update of
    the state, or the ended run's own."""

    @property
    def working_seconds(self) -> float | None:
        """What it may work at most; None: without a deadline."""
        worked = self.origin.worked_seconds if isinstance(self.origin, Resumed) else 0.0
        limit = self.limits.deadline_seconds
        return None if limit is None else max(0.0, limit - worked)

    @property
    def digest(self) -> str:
        """What makes a request the same request when it is made again under the same run id. Not the graph's version:
        whoever asks again while new code is rolled out gets the run that was admitted."""
        return digest(
            {
                "tenant": self.tenant.tenant_id,
                "user": self.tenant.user_id,
                "thread": self.thread_key,
                "graph": self.graph_name,
                "input": sha256(self.input).hexdigest(),
                "input_type": self.input_type,
                "context": self.context,
                "limits": self.limits,
                "attached": self.attached,
                **self._origin_told,
            }
        )

    @property
    def _origin_told(self) -> dict[str, Any]:
        match self.origin:
            case Forked(run_id=run_id, checkpoint_id=checkpoint_id):
                return {"forked_from": run_id, "forked_at": checkpoint_id}
            case Resumed(run_id=run_id):
                return {"resumed_from": run_id}
            case None:
                return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as the store keeps it."""

    run_id: RunId
    thread_id: ThreadId
    thread_key: str
    tenant: TenantContext
    graph_name: str
    graph_version: str
    status: RunStatus
    input: bytes
    input_type: str
    context: dict[str, Any] | None
    limits: Limits
    remaining_seconds: float | None
    """Working time left, by the database's clock (what was left when parked, while parked); None: no deadline."""
    epoch: int
    attempt: int
    takeovers: int
    """Attempts in a row that ended because their worker was lost."""
    parked: bool
    """Whether the attempt before this one ended by parking the run, so that nothing was answered since."""
    max_attempts: int
    output: Any
    next_action: str | None
    cause: RuntimeErrorRecord | None
    cancel_requested: bool
    worker_id: str | None
    trace_parent: str | None
    attached: bool
    forked_from: RunId | None
    """The run of another thread from whose history it goes on."""
    forked_at: str | None
    """The checkpoint that it goes on from, where it is a fork."""
    resumed_from: RunId | None
    """The ended run of its thread that it goes on for."""
    fork: str
    """The salt of its thread, where that is a fork; otherwise empty."""
    legal_hold: LegalHold | None
    """While there is one: nothing of the run is pruned or deleted."""
    contents_pruned_at: datetime | None
    """When retention took its input (empty from then on), context, output, and all but the facts of its cause."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    unreadable: HoldfastError | None = None
    """Why what is stored of it cannot be opened here: it comes with its facts then, and none of its contents."""

    @property
    def version(self) -> GraphVersion:
        """What the run is pinned to."""
        return GraphVersion(self.graph_name, self.graph_version)

    @property
    def dead(self) -> bool:
        """Whether it was given up because worker after worker was lost on it. Only a person can know better."""
        return self.cause is not None and self.cause.metadata.get("class") == AttemptsExhausted.__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The right to write for a run: what the fence compares. Attached runs have one too, without a lease."""

    tenant_id: TenantId
    run_id: RunId
    thread_id: ThreadId
    epoch: int
    attempt: int
    worker_id: str
    attached: bool = False


class RunClaim(BaseModel):
    """A worker's hold on a run: the specification's worker claim."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    run_id: RunId
    worker_id: str
    claimed_until: datetime
    heartbeat_at: datetime
    run: Run = Field(repr=False)
    served_by: str
    """The version of the run's graph whose code serves this attempt: the run's own, or one compatible with it."""

    @property
    def owner(self) -> Owner:
        """The fence's view of this claim."""
        return owner_of(self.run, self.worker_id)


def owner_of(run: Run, worker_id: str = "") -> Owner:
    """The owner that a run names now. Whether it still holds when it writes, the fence says."""
    return Owner(
        tenant_id=run.tenant.tenant_id,
        run_id=run.run_id,
        thread_id=run.thread_id,
        epoch=run.epoch,
        attempt=run.attempt,
        worker_id=worker_id or run.worker_id or "",
        attached=run.attached,
    )


class RunResult(BaseModel):
    """How a run stands once it rests: the specification's run result, and what a caller wants to know besides."""

    model_config = ConfigDict(frozen=True)

    run_id: RunId
    thread_id: ThreadId
    status: RunStatus
    output: Any = None
    """The graph's output; for a failed or cancelled run, its state up to then."""
    next_action: str | None = None
    """What someone must do for the run to go on, in words; None when nothing."""
    approvals: tuple[Approval, ...] = ()
    """What a person is asked, while the run is `interrupted`."""
    error: RuntimeErrorRecord | None = None
    usage: Usage = Usage()
    contents_pruned_at: datetime | None = None
    """When retention took the output and the words of the error, where it has."""
