"""Whether an error may be tried again, and how long to wait before it is."""

from dataclasses import dataclass

from holdfast.contracts.errors import (
    RETRY_RULES,
    ConfigurationError,
    DeadlineExceeded,
    ErrorType,
    HoldfastError,
    RetryRule,
)
from holdfast.contracts.tools import Effect

_ATTEMPT_WHERE_THE_CAP_HOLDS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryTerms:
    """How often a call is sent in all, and between which pauses."""

    attempts: int = 3
    """Sends of one call, the first included."""
    base_seconds: float = 0.5
    """The longest pause after the first send; it doubles with each."""
    cap_seconds: float = 20.0
    """No pause of ours is longer than this; one that a provider asks for may be."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.base_seconds <= self.cap_seconds:
            raise ConfigurationError(
                f"retry terms need attempts >= 1 and 0 <= base_seconds <= cap_seconds, not {self.attempts}, "
                f"{self.base_seconds} and {self.cap_seconds}"
            )


def pause_seconds(attempt: int, terms: RetryTerms, fraction: float, retry_after: float | None = None) -> float:
    """Seconds to wait after send number `attempt` (from 1) has failed, by exponential backoff with full jitter.

    `fraction`, in [0, 1), is the jitter. What the other side asked for (`retry_after`) is honoured in full, and the
    jitter comes on top, so that those who were told the same instant do not all come back in it. See M. Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    doublings = min(attempt - 1, _ATTEMPT_WHERE_THE_CAP_HOLDS)
    ours = fraction * min(terms.cap_seconds, terms.base_seconds * 2.0**doublings)
    return ours if retry_after is None else retry_after + ours


def may_have_happened(error: HoldfastError) -> bool:
    """Whether, after this error, what was asked may have been done all the same.

    True when no answer came: a timeout, or a lost connection that the sender's own code did not explain. A transient
    error of ours that the sender raised itself, a deadline that passed before the send (one that passed after it has
    the fact `sent`) and every refusal say that nothing was done.
    """
    foreign = "exception" in error.facts
    if isinstance(error, DeadlineExceeded):
        return foreign or "sent" in error.facts
    return error.error_type is ErrorType.TIMEOUT or (error.error_type is ErrorType.TRANSIENT_DEPENDENCY and foreign)


def may_retry(error: HoldfastError, *, effect: Effect, idempotent: bool) -> bool:
    """Whether a call that ended in `error` may be sent again, by the one table of retry rules.

    Repairs and renewed credentials are not retries of the same call, and are left to whoever can make them.
    """
    harmless = effect is Effect.READ or idempotent
    match RETRY_RULES[error.error_type]:
        case RetryRule.BACKOFF:
            return harmless or not may_have_happened(error)
        case RetryRule.IF_EFFECT_ALLOWS:
            return harmless and not isinstance(error, DeadlineExceeded)
        case _:
            return False
