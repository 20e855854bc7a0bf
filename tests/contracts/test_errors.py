"""The error tree, its drawing, and the one table that gives every exception a type and a retry rule."""

import asyncio
import inspect
import pickle
import re

import httpx
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from holdfast.contracts import errors
from holdfast.contracts.classification import FOREIGN, translated, type_of, type_of_status
from holdfast.contracts.errors import RETRY_RULES, ErrorType, HoldfastError, RetryRule, UnclassifiedFailure

CLASSES = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, HoldfastError)]


def drawn() -> dict[str, str]:
    """Class -> parent, as the module's drawing has it."""
    assert errors.__doc__ is not None
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"^((?:│   |    )*)(?:├── |└── )?([A-Z]\w+)(?:\s{2,}|$)", line)
        if match is None:
            continue
        depth = 0 if line.startswith("H") else len(match.group(1)) // 4 + 1
        path = [*path[:depth], match.group(2)]
        if depth:
            parents[match.group(2)] = path[depth - 1]
    return parents


def test_the_drawing_of_the_tree_is_the_tree():
    assert drawn() == {c.__name__: c.__bases__[0].__name__ for c in CLASSES if c is not HoldfastError}


def test_every_error_type_has_a_retry_rule_and_a_class():
    assert set(RETRY_RULES) == set(ErrorType)
    assert {c.error_type for c in CLASSES} == set(ErrorType)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickling_with_its_facts(kind):
    error = pickle.loads(pickle.dumps(kind("why", fact=1)))
    assert (type(error), error.message, error.facts) == (kind, "why", {"fact": 1})


@pytest.mark.parametrize("kind", CLASSES)
def test_a_record_carries_type_retryability_and_facts(kind):
    record = kind("why", limit=3).record(run_id="r", step_name="draft")
    assert record.error_type is kind.error_type
    assert record.retryable == (RETRY_RULES[kind.error_type] is RetryRule.BACKOFF)
    assert record.metadata == {"class": kind.__name__, "limit": 3}


def test_an_exception_nobody_knows_is_permanent_and_names_its_class():
    class Odd(Exception):
        pass

    ours = translated(Odd("strange"))
    assert type(ours) is UnclassifiedFailure
    assert ours.error_type is ErrorType.PERMANENT_DEPENDENCY
    assert ours.facts["exception"].endswith("Odd")
    assert not ours.retryable


def test_a_bug_says_its_class_and_the_line_that_raised_it():
    with pytest.raises(KeyError) as caught:
        {}["nope"]  # raised on purpose

    ours = translated(caught.value)

    assert ours.message == "KeyError: 'nope'"
    assert ours.facts["raised_at"].startswith(f"{__file__}:")
    assert ours.facts["raised_at"].endswith(" in test_a_bug_says_its_class_and_the_line_that_raised_it")


class Strict(BaseModel):
    n: int


def invalid() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Strict.model_validate({"n": "x"})
    return caught.value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (asyncio.CancelledError(), ErrorType.CANCELLATION),
        (TimeoutError(), ErrorType.TIMEOUT),
        (ConnectionResetError(), ErrorType.TRANSIENT_DEPENDENCY),
        (httpx.ReadTimeout("slow"), ErrorType.TIMEOUT),
        (httpx.ConnectError("gone"), ErrorType.TRANSIENT_DEPENDENCY),
        (psycopg.OperationalError(), ErrorType.TRANSIENT_DEPENDENCY),
        (psycopg.errors.UniqueViolation(), ErrorType.PERMANENT_DEPENDENCY),
        (invalid(), ErrorType.VALIDATION_ERROR),
        (KeyError("x"), ErrorType.PERMANENT_DEPENDENCY),
        (ExceptionGroup("g", [errors.BudgetExceeded("b"), ValueError()]), ErrorType.BUDGET_EXCEEDED),
        (ExceptionGroup("g", [ExceptionGroup("h", [errors.PolicyDenied("p")])]), ErrorType.POLICY_DENIED),
    ],
)
def test_foreign_exceptions_have_the_type_that_fits(error, expected):
    assert type_of(error) is expected


@given(st.integers(min_value=400, max_value=599))
def test_every_http_failure_has_a_type(status):
    assert type_of_status(status) in ErrorType


@pytest.mark.parametrize("name", sorted(FOREIGN))
def test_every_name_in_the_table_is_a_class_that_exists(name):
    module, _, qualname = name.rpartition(".")
    found = vars(__import__(module, fromlist=["_"])).get(qualname)
    if found is None:  # a class may be public under one module and live in another
        pytest.fail(f"{name} does not exist in the versions we lock")
    assert f"{found.__module__}.{found.__qualname__}" == name


def test_a_refused_budget_is_never_retried_and_a_rate_limit_is():
    assert not errors.BudgetExceeded("b").retryable
    assert not errors.PolicyDenied("p").retryable
    assert errors.RateLimited("r").retryable
    assert errors.StoreUnavailable("s").retryable
