"""One request to the outside: its identity, its intent before, its outcome after."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal

from holdfast.contracts.canonical import digest
from holdfast.contracts.errors import ErrorType
from holdfast.contracts.ids import ApprovalId, BudgetId, CallId, RunId, TenantId, ThreadId
from holdfast.contracts.limits import Usage
from holdfast.contracts.tools import Effect

CallKind = Literal["model", "tool"]
Turn = tuple[str, str]
"""A task, and which execution of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSite:
    """Where in the graph a call is made, read from LangGraph's live config."""

    thread_id: ThreadId
    checkpoint_ns: str
    task_id: str
    node: str
    checkpoint_id: str | None = None
    execution: str = field(default="", compare=False)
    """Which time this is that the task runs here: LangGraph runs a `@task` that failed again inside its node. It is no
    part of the identity: a call is the same call whichever time it is made."""

    @property
    def turn(self) -> Turn:
        """What is counted and remembered of a task begins anew with each execution of it."""
        return self.task_id, self.execution


@dataclass(frozen=True, slots=True, kw_only=True)
class CallIdentity:
    """What makes a call the same call when its node runs again. Neither the attempt nor the run is part of it."""

    site: CallSite
    kind: CallKind
    name: str
    request_digest: str
    occurrence: int
    """The n-th call, from 0, with this digest in the task."""
    fork: str = ""
    """Salt of a forked thread, so that a fork never reuses a recorded effect."""

    @property
    def key(self) -> str:
        """The idempotency key: the digest of the identity."""
        return _key(self)


@lru_cache(maxsize=4096)
def _key(identity: CallIdentity) -> str:
    site = identity.site
    return digest(
        [
            site.thread_id,
            site.checkpoint_ns,
            site.task_id,
            site.node,
            identity.kind,
            identity.name,
            identity.request_digest,
            identity.occurrence,
            identity.fork,
        ]
    )


class OutcomeStatus(StrEnum):
    """What is known of a call's end."""

    RETURNED = "returned"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """Sent, and the answer lost: to be reconciled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallIntent:
    """The journal's row before a call. Committing it reserves the budget: money is reserved before it is spent."""

    call_id: CallId
    identity: CallIdentity
    agent_name: str
    request: Mapping[str, Any]
    """The canonical request, for the record."""
    effect: Effect
    idempotent: bool
    reservation: Usage
    """`cost_usd=None` where the price is unknown: refused while any budget on the path has a cost limit."""
    budgets: tuple[BudgetId, ...]
    """The budgets that pay, the innermost first: specialist, run, tenant."""
    timeout_seconds: float
    policy_version: str
    grant: ApprovalId | None = None
    """The approval that this call uses up, in the same commit."""
    prompt_version: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """The journal's row after a call. Recording it settles the reservation in the same commit."""

    call_id: CallId
    status: OutcomeStatus
    usage: Usage
    """What was really used. For `unknown` it is not read: the reservation stays until it is reconciled."""
    response: Mapping[str, Any] | None = None
    error_type: ErrorType | None = None
    error_message: str | None = None
    error_facts: Mapping[str, Any] = field(default_factory=dict)
    latency_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """A call as the journal keeps it."""

    call_id: CallId
    tenant_id: TenantId
    run_id: RunId
    """The run that opened the intent."""
    last_run_id: RunId
    """The run that sent it last: another one, where that went on for the first after its end."""
    identity: CallIdentity
    agent_name: str
    request: Mapping[str, Any]
    effect: Effect
    idempotent: bool
    status: Literal["open", "returned", "failed", "unknown"]
    reservation: Usage
    usage: Usage
    """What all its sends have used so far; of the last one nothing, as long as it has no outcome."""
    response: Mapping[str, Any] | None
    error_type: ErrorType | None
    error_message: str | None
    error_facts: Mapping[str, Any]
    sends: int
    """How often it was sent; more than once only for what may be."""
    latency_ms: int | None
    model: str | None
    prompt_version: str | None
    policy_version: str
    opened_at: datetime
    closed_at: datetime | None
    contents_pruned_at: datetime | None = None
    """When retention took its request, response, and the message and facts of its error; from then on they are
    empty."""


def opened_now(
    intent: CallIntent, *, tenant_id: TenantId, run_id: RunId, request: Mapping[str, Any], opened_at: datetime
) -> CallRecord:
    """The record of an intent that was just committed, its `request` as it is stored."""
    return CallRecord(
        call_id=intent.call_id,
        tenant_id=tenant_id,
        run_id=run_id,
        last_run_id=run_id,
        identity=intent.identity,
        agent_name=intent.agent_name,
        request=request,
        effect=intent.effect,
        idempotent=intent.idempotent,
        status="open",
        reservation=intent.reservation,
        usage=Usage(),
        response=None,
        error_type=None,
        error_message=None,
        error_facts={},
        sends=1,
        latency_ms=None,
        model=intent.model,
        prompt_version=intent.prompt_version,
        policy_version=intent.policy_version,
        opened_at=opened_at,
        closed_at=None,
    )


@dataclass(frozen=True, slots=True)
class Fresh:
    """The intent was recorded: go and act."""

    record: CallRecord


@dataclass(frozen=True, slots=True)
class Recorded:
    """The call has an outcome: answer from it. (A recorded failure that may be retried counts as no outcome.)"""

    record: CallRecord


@dataclass(frozen=True, slots=True)
class Unknown:
    """An earlier try left an intent without an outcome: reconcile before anything is sent."""

    record: CallRecord


Opened = Fresh | Recorded | Unknown
