"""What a policy is asked and what it answers."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from holdfast.contracts.tenancy import TenantContext
from holdfast.contracts.tools import Effect


class Autonomy(StrEnum):
    """How far an agent may act alone."""

    OBSERVE = "observe"
    """Reads only."""
    PROPOSE = "propose"
    """Everything but reading is asked for."""
    SUPERVISED = "supervised"
    """What reaches others or cannot be undone is asked for."""
    AUTONOMOUS = "autonomous"
    """Only what a policy singles out is asked for."""


class Decision(StrEnum):
    """What a policy decides, from freest to strictest."""

    ALLOW = "allow"
    PREVIEW = "preview"
    """Asked for as well, and the person is shown a preview where the tool has one."""
    ASK = "ask"
    DENY = "deny"


class PolicyRequest(BaseModel):
    """The facts a permission policy decides on."""

    model_config = ConfigDict(frozen=True)

    tenant: TenantContext
    action: Literal["call_model", "call_tool"]
    resource: str
    """The tool's name, or the model as `provider:model`."""
    agent_name: str = ""
    graph_name: str = ""
    effect: Effect = Effect.READ
    idempotent: bool = False
    autonomy: Autonomy = Autonomy.SUPERVISED
    args: Mapping[str, Any] = Field(default_factory=dict)


class Verdict(BaseModel):
    """A policy's answer, with the rule that gave it and a reason for the reader."""

    model_config = ConfigDict(frozen=True)

    decision: Decision
    rule: str
    reason: str
    policy_version: str


class Policy(Protocol):
    """Permission rules. Pure: the same facts give the same verdict."""

    @property
    def version(self) -> str:
        """Changes whenever a rule does; recorded with every verdict and bound into every approval."""
        ...

    def decide(self, request: PolicyRequest) -> Verdict:
        """The verdict on `request`. Never raises: what cannot be decided is denied."""
        ...
