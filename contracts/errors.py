"""What can go wrong, in one tree; who must act, and whether it may be tried again.

HoldfastError
├── InvalidRequest            what a caller, a model or an operator gave does not fit
│   ├── ConfigurationError    the settings, at start
│   ├── NotFound              no such run, thread, graph, approval, tenant, tool or model here
│   ├── Conflict              it exists, but its state does not admit this
│   │   └── ContentsPruned    what it needs was taken by its tenant's terms of retention
│   ├── InvalidModelOutput    a model's answer did not fit its schema, after its one repair
│   └── TooLarge              an input or a result passes its size limit
├── PolicyDenied              a policy said no: a decision, not a fault
│   └── NotGoverned           a call, or a graph, outside any governed run
├── AuthError                 a credential was refused
├── RateLimited               too much at once; says when to come back
│   └── AdmissionRefused      the queue or the tenant's quota is full
├── TimedOut                  no answer in time; it does not mean that it did not happen
│   └── DeadlineExceeded      the run's own deadline has passed
├── TransientDependency       the outside failed us, perhaps not next time
│   └── StoreUnavailable      Postgres cannot be reached, or gave up
│       └── KeyMissing        what is stored is sealed with a key that this process does not have
├── PermanentDependency       the outside said no, and will again
│   ├── UnclassifiedFailure   an exception nobody knows; its class is in the metadata
│   ├── AttemptsExhausted     worker after worker was lost on the run: it is dead, and kept for a person
│   ├── SealBroken            what is stored was altered or moved, or was never sealed
│   └── InvariantViolated     should never happen; never caught
├── BudgetExceeded            a limit of the run, specialist or tenant would be passed
├── HumanRequired             a person must decide first
│   ├── OutcomeUnknown        sent, and the answer was lost: never sent again without knowing
│   └── ReplayMismatch        run again, a task no longer asks for an effect that it had asked for
└── RunCancelled              someone wants the run to stop
    ├── LeaseLost             another worker owns the run now: stop, write nothing
    └── ReplayStopped         a replay came to what is not recorded: nothing is sent
"""

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from math import isfinite
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from holdfast.contracts.credentials import masked


class ErrorType(StrEnum):
    """The ten error types of the specification."""

    VALIDATION_ERROR = "validation_error"
    POLICY_DENIED = "policy_denied"
    AUTH_ERROR = "auth_error"
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    TRANSIENT_DEPENDENCY = "transient_dependency"
    PERMANENT_DEPENDENCY = "permanent_dependency"
    BUDGET_EXCEEDED = "budget_exceeded"
    HUMAN_REQUIRED = "human_required"
    CANCELLATION = "cancellation"


class RetryRule(StrEnum):
    """What may be done about an error of a type."""

    NEVER = "never"
    REPAIR = "repair"
    """Once, with the complaint shown to whoever produced it."""
    AFTER_REFRESH = "after_refresh"
    """Once, after the credential has been renewed."""
    BACKOFF = "backoff"
    """With growing pauses and jitter, honouring Retry-After."""
    IF_EFFECT_ALLOWS = "if_effect_allows"
    """Only for what has no effect, or is idempotent."""
    INTERRUPT = "interrupt"
    """Not tried again: a person is asked."""


RETRY_RULES: Mapping[ErrorType, RetryRule] = {
    ErrorType.VALIDATION_ERROR: RetryRule.REPAIR,
    ErrorType.POLICY_DENIED: RetryRule.NEVER,
    ErrorType.AUTH_ERROR: RetryRule.AFTER_REFRESH,
    ErrorType.RATE_LIMITED: RetryRule.BACKOFF,
    ErrorType.TIMEOUT: RetryRule.IF_EFFECT_ALLOWS,
    ErrorType.TRANSIENT_DEPENDENCY: RetryRule.BACKOFF,
    ErrorType.PERMANENT_DEPENDENCY: RetryRule.NEVER,
    ErrorType.BUDGET_EXCEEDED: RetryRule.NEVER,
    ErrorType.HUMAN_REQUIRED: RetryRule.INTERRUPT,
    ErrorType.CANCELLATION: RetryRule.NEVER,
}


class RuntimeErrorRecord(BaseModel):
    """A failure as it is stored, shown and sent: the specification's runtime error record."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    step_name: str
    error_type: ErrorType
    retryable: bool
    message: str
    metadata: dict[str, Any] = Field(default_factory=dict)


_LONGEST_MESSAGE = 10_000
_LONGEST_FACT = 1_000


class HoldfastError(Exception):
    """The root. `facts` are keyword attributes of the error; they travel in the record's metadata.

    Message and facts are what every store can keep, whatever was quoted in them: without NUL, lone surrogates and
    numbers that JSON has not, and not without end. What ended a run must never be what keeps it from ending. What has
    the shape of a credential is masked: errors are stored, shown, and told to models.
    """

    error_type: ClassVar[ErrorType] = ErrorType.PERMANENT_DEPENDENCY

    def __init__(self, message: str, **facts: Any) -> None:
        self.message = _text(message)
        self.facts = {name: _fact(value) for name, value in facts.items()}
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.facts)

    @property
    def code(self) -> str:
        """The stable name of the error for APIs: its type."""
        return self.error_type.value

    @property
    def retryable(self) -> bool:
        """Whether trying the same thing again may help without anyone acting first."""
        return RETRY_RULES[self.error_type] is RetryRule.BACKOFF

    def record(self, *, run_id: str, step_name: str) -> RuntimeErrorRecord:
        """This error as the specification's record."""
        return RuntimeErrorRecord(
            run_id=run_id,
            step_name=step_name,
            error_type=self.error_type,
            retryable=self.retryable,
            message=self.message,
            metadata={"class": type(self).__name__, **self.facts},
        )


def _text(text: str) -> str:
    if len(text) > _LONGEST_MESSAGE:
        text = f"{text[:_LONGEST_MESSAGE]}… ({len(text)} characters)"
    return masked(text.replace("\x00", "\ufffd").encode(errors="replace").decode())


def _fact(value: Any) -> Any:
    match value:
        case None | bool() | int() | Decimal() | StrEnum():
            return value
        case str():
            return _text(value)
        case float():
            return value if isfinite(value) else str(value)
        case Mapping():
            return {_text(str(name)): _fact(item) for name, item in value.items()}
        case list() | tuple():
            return [_fact(item) for item in value]
    return _text(repr(value)[:_LONGEST_FACT])


def _rebuild(kind: type[HoldfastError], message: str, facts: dict[str, Any]) -> HoldfastError:
    return kind(message, **facts)


class InvalidRequest(HoldfastError):
    """What was given does not fit, and the same again will not fit either."""

    error_type = ErrorType.VALIDATION_ERROR


class ConfigurationError(InvalidRequest):
    """The settings, the graphs or the database are not fit to start with."""


class NotFound(InvalidRequest):
    """No such thing here, or not for this tenant: the two are not told apart."""


class Conflict(InvalidRequest):
    """The thing exists, but its state does not admit what was asked."""


class ContentsPruned(Conflict):
    """What was asked needs contents of a run that retention has taken. Facts: `run_id`, `term`, `pruned_at`."""


class InvalidModelOutput(InvalidRequest):
    """A model's answer did not fit the response schema, after one repair."""


class TooLarge(InvalidRequest):
    """An input or a result is larger than its limit. Facts: `size_bytes`, `limit_bytes`."""


class PolicyDenied(HoldfastError):
    """A policy refused. Facts: `rule`, `action`, `resource`."""

    error_type = ErrorType.POLICY_DENIED


class NotGoverned(PolicyDenied):
    """A model or tool call, or a graph, outside a governed run."""


class AuthError(HoldfastError):
    """A credential was missing, expired or refused."""

    error_type = ErrorType.AUTH_ERROR


class RateLimited(HoldfastError):
    """Too much at once. Facts: `retry_after_seconds` where it is known."""

    error_type = ErrorType.RATE_LIMITED


class AdmissionRefused(RateLimited):
    """The queue or the tenant's quota is full. Facts: `retry_after_seconds`."""


class TimedOut(HoldfastError):
    """No answer in time. Facts: `timeout_seconds`. What was asked may have happened all the same."""

    error_type = ErrorType.TIMEOUT


class DeadlineExceeded(TimedOut):
    """The run's deadline has passed. Nothing below the run may go on."""


class TransientDependency(HoldfastError):
    """Something outside failed in a way that may pass."""

    error_type = ErrorType.TRANSIENT_DEPENDENCY


class StoreUnavailable(TransientDependency):
    """Postgres could not be reached or did not answer in time."""


class KeyMissing(StoreUnavailable):
    """What is stored is sealed with a key that this process does not have; another may. Facts: `key_id`."""


class PermanentDependency(HoldfastError):
    """Something outside refused in a way that will not pass."""

    error_type = ErrorType.PERMANENT_DEPENDENCY


class UnclassifiedFailure(PermanentDependency):
    """An exception that no table knows. Facts: `exception`, its qualified class."""


class SealBroken(PermanentDependency):
    """Encryption is on, and what is stored is not what was sealed there. Facts: `place`, and perhaps `key_id`."""


class AttemptsExhausted(PermanentDependency):
    """A run was given up because too many workers in a row were lost while they worked on it. Facts: `attempts`."""


class InvariantViolated(PermanentDependency):
    """holdfast found itself in a state that should not exist. Please report it."""


class BudgetExceeded(HoldfastError):
    """A limit would be passed. Facts: `budget`, `limit_name`, `limit`, `spent`, `reserved`, `requested`."""

    error_type = ErrorType.BUDGET_EXCEEDED


class HumanRequired(HoldfastError):
    """A person must decide before this can go on. Facts: `approval_id` where there is one."""

    error_type = ErrorType.HUMAN_REQUIRED


class OutcomeUnknown(HumanRequired):
    """A call was sent and its answer lost; it is not known whether it happened. Facts: `call_id`, `tool_name`."""


class ReplayMismatch(HumanRequired):
    """A task that was run again no longer asked for an effect that it had asked for, and a person did not let that
    stand. Facts: `call_id`, `tool_name`."""


class RunCancelled(HoldfastError):
    """The run was asked to stop. Facts: `by`, `reason`."""

    error_type = ErrorType.CANCELLATION


class LeaseLost(RunCancelled):
    """Another worker owns the run now, or nobody does. Facts: `run_id`, `epoch`."""


class ReplayStopped(RunCancelled):
    """A replay came to a call or a question that the record does not answer. Facts: `node`, `name`."""
