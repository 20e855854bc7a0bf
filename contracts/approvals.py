"""What a person is asked, and what they decide."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from holdfast.contracts.canonical import digest
from holdfast.contracts.ids import ApprovalId, RunId, TenantId, ThreadId

DecisionType = Literal["approve", "edit", "reject", "respond"]


class ApprovalStatus(StrEnum):
    """The life of an approval. All but `pending` are final."""

    PENDING = "pending"
    APPROVED = "approved"
    EDITED = "edited"
    """Approved with other arguments than were asked for."""
    REJECTED = "rejected"
    RESPONDED = "responded"
    """Answered in the tool's place, or to a plain `interrupt(value)`."""
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    """The run ended before anyone decided."""


class ApprovalKind(StrEnum):
    """What is asked."""

    TOOL = "tool"
    """May this tool be called with these arguments?"""
    RECONCILE = "reconcile"
    """A call's answer was lost: did it happen?"""
    MISMATCH = "mismatch"
    """A task was run again and no longer asks for an effect it had asked for: may that stand?"""
    QUESTION = "question"
    """A plain `interrupt(value)` of a node."""


class ApprovalRequest(BaseModel):
    """A question for a person, before it has an id. Its payload is LangChain's human-in-the-loop request
    (`action_requests`, `review_configs`) for tools, and the interrupt's value for a question."""

    model_config = ConfigDict(frozen=True)

    kind: ApprovalKind
    interrupt_id: str
    """LangGraph's id of the interrupt: the only thing a run is resumed by."""
    node: str
    task_id: str
    payload: Any
    allowed: tuple[DecisionType, ...] = ("approve", "edit", "reject", "respond")
    tool_name: str | None = None
    args: dict[str, Any] | None = None
    args_digest: str | None = None
    """Digest of the tool, its arguments and the policy version: what is granted is exactly this."""
    policy_version: str | None = None
    rule: str | None = None
    call_id: str | None = None
    """For `reconcile` and `mismatch`: the call in question."""
    identity_key: str | None = None
    """`CallIdentity.key` of the call that is asked for. The answer is found by it, not by the order of interrupts."""
    expires_in_seconds: float = Field(default=604_800.0, gt=0)


class Approval(BaseModel):
    """A row of the inbox."""

    model_config = ConfigDict(frozen=True)

    id: ApprovalId
    tenant_id: TenantId
    run_id: RunId
    thread_id: ThreadId
    kind: ApprovalKind
    status: ApprovalStatus
    interrupt_id: str
    node: str
    task_id: str
    payload: Any
    allowed: tuple[DecisionType, ...]
    tool_name: str | None = None
    args: dict[str, Any] | None = None
    args_digest: str | None = None
    granted_digest: str | None = None
    """The digest that was granted: `args_digest`, or that of the edited arguments."""
    policy_version: str | None = None
    rule: str | None = None
    call_id: str | None = None
    identity_key: str | None = None
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None = None
    decided_by: str | None = None
    decision: dict[str, Any] | None = None
    """LangChain's decision: `{"type": "approve"}`, `{"type": "edit", "edited_action": {…}}`,
    `{"type": "reject", "message": …}`, `{"type": "respond", "message": …}`."""
    used_at: datetime | None = None
    """When the grant was used; it can be used once."""
    contents_pruned_at: datetime | None = None
    """When retention took its payload, arguments and decision; from then on they are None. The status stays."""
    overdue: bool = False
    """Whether `expires_at` had passed, by the store's clock, when the approval was looked up for its call."""


class Question(BaseModel):
    """What the tool executor wants a person to decide before it acts. The node's face turns it into an interrupt."""

    model_config = ConfigDict(frozen=True)

    kind: ApprovalKind
    tool_name: str
    args: dict[str, Any]
    args_digest: str
    policy_version: str
    rule: str
    reason: str
    """In words, for the person: why they are asked."""
    preview: str | None = None
    """What would happen, where the tool can say so."""
    allowed: tuple[DecisionType, ...] = ("approve", "edit", "reject", "respond")
    call_id: str | None = None


class Ruling(BaseModel):
    """What a person decides about an approval, before it is recorded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: DecisionType
    message: str | None = None
    """For `reject` and `respond`: what the model is told."""
    args: dict[str, Any] | None = None
    """For `edit`: the arguments to use instead."""
    value: Any = None
    """For `respond` to a plain interrupt: the answer."""


def grant_digest(tool_name: str, args: Mapping[str, Any], policy_version: str) -> str:
    """What an approval grants: the digest of this tool, exactly these arguments, under this policy."""
    return digest({"tool": tool_name, "args": args, "policy_version": policy_version})
