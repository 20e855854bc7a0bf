"""Every error that psycopg can raise becomes one of ours."""

import inspect

import psycopg
import psycopg_pool
import pytest
from psycopg import errors

from holdfast.checkpoints.translation import translate, translating
from holdfast.contracts.errors import (
    AuthError,
    ConfigurationError,
    Conflict,
    InvalidRequest,
    InvariantViolated,
    NotFound,
    StoreUnavailable,
)

FOREIGN = sorted(
    {
        kind
        for module in (psycopg, errors, psycopg_pool)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, psycopg.Error)
    },
    key=lambda kind: kind.__name__,
)
OURS = {AuthError, ConfigurationError, Conflict, InvalidRequest, InvariantViolated, NotFound, StoreUnavailable}


def test_there_are_as_many_errors_as_postgres_has() -> None:
    assert len(FOREIGN) > 200


@pytest.mark.parametrize("kind", FOREIGN)
def test_error_of_psycopg_becomes_one_of_ours(kind: type[psycopg.Error]) -> None:
    with pytest.raises(tuple(OURS)) as caught, translating():
        raise kind("it went\nwrong")
    assert type(caught.value) in OURS
    assert isinstance(caught.value.__cause__, kind)
    assert "it went wrong" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        (errors.UniqueViolation, Conflict),
        (errors.CheckViolation, InvariantViolated),
        (errors.NotNullViolation, InvariantViolated),
        (errors.ForeignKeyViolation, NotFound),
        (errors.NumericValueOutOfRange, InvalidRequest),
        (errors.UntranslatableCharacter, InvalidRequest),
        (errors.InvalidPassword, AuthError),
        (errors.UndefinedColumn, ConfigurationError),
        (errors.SyntaxError, InvariantViolated),
        (errors.InFailedSqlTransaction, InvariantViolated),
        (errors.QueryCanceled, StoreUnavailable),
        (errors.LockNotAvailable, StoreUnavailable),
        (errors.DeadlockDetected, StoreUnavailable),
        (errors.SerializationFailure, StoreUnavailable),
        (errors.AdminShutdown, StoreUnavailable),
        (errors.TooManyConnections, StoreUnavailable),
        (errors.DiskFull, StoreUnavailable),
        (errors.ReadOnlySqlTransaction, StoreUnavailable),
        (errors.ProgramLimitExceeded, InvalidRequest),
        (errors.StatementTooComplex, InvalidRequest),
        (errors.OutOfMemory, StoreUnavailable),
        (psycopg.InterfaceError, StoreUnavailable),
        (psycopg_pool.PoolTimeout, StoreUnavailable),
        (psycopg_pool.PoolClosed, StoreUnavailable),
    ],
)
def test_error_says_what_may_be_done_about_it(kind: type[psycopg.Error], ours: type[Exception]) -> None:
    assert type(translate(kind("it went wrong"))) is ours


def test_only_what_may_pass_is_tried_again() -> None:
    tried_again = {kind for kind in OURS if kind("x").retryable}
    assert tried_again == {StoreUnavailable}
