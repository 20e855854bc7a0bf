"""What is asked of a tool, what it does to the world, and what it answers."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from holdfast.contracts.canonical import canonical
from holdfast.contracts.deadline import Deadline
from holdfast.contracts.errors import ErrorType


class Effect(StrEnum):
    """What a tool does to the world, from harmless to final."""

    READ = "read"
    """Looks, changes nothing."""
    WRITE = "write"
    """Changes something of the tenant's own that can be changed back."""
    EXTERNAL = "external"
    """Reaches others: money, mail, tickets."""
    DESTRUCTIVE = "destructive"
    """Cannot be undone."""


class ToolTerms(BaseModel):
    """How a tool is governed. A tool without terms of its own has these defaults: the strictest that work."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    effect: Effect = Effect.EXTERNAL
    """What it does to the world: `read`, `write`, `external` or `destructive`."""
    idempotent: bool = False
    """Whether sending it again with the same key is harmless."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """The longest wait for its answer; the deadline may leave less."""
    permissions: tuple[str, ...] = ()
    """Roles or data scopes that the run's principal must have, all of them."""
    max_result_bytes: int = Field(default=65_536, gt=0)
    """The largest result that is recorded."""


class AllowedCommand(BaseModel):
    """A named command with arguments, instead of a shell: the specification's allowed command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command_name: str
    args: dict[str, Any] = Field(default_factory=dict)


class ToolRequest(BaseModel):
    """One request to a tool: the specification's tool request."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    run_id: str
    tool_call_id: str
    tool_name: str
    input: dict[str, Any]
    idempotency_key: str = ""
    """Derived from the call's identity by the executor; a caller leaves it empty."""
    deadline: SkipValidation[Deadline] = Field(exclude=True, repr=False)
    agent_name: str = ""


class ToolResult(BaseModel):
    """A tool's answer: the specification's tool result. A failure is told in a form that a model can act on."""

    model_config = ConfigDict(frozen=True)

    tool_call_id: str
    status: Literal["ok", "error", "rejected"]
    """`rejected`: a person said no, or answered in the tool's place (then `output` holds the answer)."""
    output: dict[str, Any] | None = None
    """The result; what is not a mapping stands under `"result"`."""
    error_type: ErrorType | None = None
    error_message: str | None = None
    replayed: bool = False

    @property
    def text(self) -> str:
        """The result as a model is told it."""
        if self.status == "ok" or self.error_message is None:
            output = self.output or {}
            result = output.get("result", output) if set(output) == {"result"} else output
            return result if isinstance(result, str) else canonical(result).decode()
        return f"{self.error_type or self.status}: {self.error_message}"
