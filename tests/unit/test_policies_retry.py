"""What may be tried again, and after how long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.contracts.classification import translated
from holdfast.contracts.errors import (
    AuthError,
    BudgetExceeded,
    ConfigurationError,
    DeadlineExceeded,
    HumanRequired,
    InvalidRequest,
    PermanentDependency,
    PolicyDenied,
    RateLimited,
    RunCancelled,
    TimedOut,
    TransientDependency,
)
from holdfast.contracts.tools import Effect
from holdfast.policies.retry import RetryTerms, may_have_happened, may_retry, pause_seconds

LOST = translated(ConnectionResetError("reset by peer"))
SAID = TransientDependency("the desk is closed; nothing was done")
LATE = TimedOut("no answer", sent=True)
TOO_LATE = DeadlineExceeded("the run is over", sent=True)
NOT_STARTED = DeadlineExceeded("the run is over", needed_for="the call")


@pytest.mark.parametrize(
    ("error", "read", "idempotent", "otherwise"),
    [
        (LOST, True, True, False),
        (SAID, True, True, True),
        (RateLimited("later"), True, True, True),
        (LATE, True, True, False),
        (translated(TimeoutError()), True, True, False),
        (TOO_LATE, False, False, False),
        (NOT_STARTED, False, False, False),
        (InvalidRequest("no"), False, False, False),
        (PolicyDenied("no"), False, False, False),
        (AuthError("no"), False, False, False),
        (PermanentDependency("no"), False, False, False),
        (BudgetExceeded("no"), False, False, False),
        (HumanRequired("no"), False, False, False),
        (RunCancelled("no"), False, False, False),
        (translated(KeyError("what")), False, False, False),
    ],
    ids=lambda value: f"{type(value).__name__}" if isinstance(value, Exception) else None,
)
def test_may_retry_by_error_effect_and_idempotency(error, read, idempotent, otherwise):
    assert may_retry(error, effect=Effect.READ, idempotent=False) is read
    assert may_retry(error, effect=Effect.EXTERNAL, idempotent=True) is idempotent
    assert may_retry(error, effect=Effect.EXTERNAL, idempotent=False) is otherwise


@pytest.mark.parametrize(
    ("error", "possible"),
    [
        (LOST, True),
        (LATE, True),
        (TOO_LATE, True),
        (translated(TimeoutError()), True),
        (NOT_STARTED, False),
        (SAID, False),
        (RateLimited("later"), False),
        (InvalidRequest("no"), False),
    ],
    ids=lambda value: f"{type(value).__name__}" if isinstance(value, Exception) else None,
)
def test_only_a_lost_answer_may_mean_that_it_happened(error, possible):
    assert may_have_happened(error) is possible


TERMS = RetryTerms(attempts=10, base_seconds=0.5, cap_seconds=8)


@pytest.mark.parametrize(("attempt", "longest"), [(1, 0.5), (2, 1), (3, 2), (4, 4), (5, 8), (6, 8), (5000, 8)])
def test_the_longest_pause_doubles_up_to_the_cap(attempt, longest):
    assert pause_seconds(attempt, TERMS, 1.0) == longest
    assert pause_seconds(attempt, TERMS, 0.0) == 0


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0, 1e6))
def test_a_pause_is_within_its_bounds_and_never_shorter_than_was_asked(attempt, fraction, asked):
    assert 0 <= pause_seconds(attempt, TERMS, fraction) <= 8
    assert asked <= pause_seconds(attempt, TERMS, fraction, asked) <= asked + 8


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"base_seconds": -1}, {"base_seconds": 9, "cap_seconds": 8}])
def test_terms_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="retry terms"):
        RetryTerms(**wrong)
