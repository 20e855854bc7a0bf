"""No error of psycopg leaves this room: each becomes one of ours, by what it says about the world."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
from psycopg import errors

from holdfast.contracts.errors import (
    AuthError,
    ConfigurationError,
    Conflict,
    HoldfastError,
    InvalidRequest,
    InvariantViolated,
    NotFound,
    StoreUnavailable,
)

# The first class of an error's MRO that is named here decides. Our constraints are named for their rules, so an
# error that carries one explains itself.
TRANSLATIONS: Mapping[type[psycopg.Error], type[HoldfastError]] = {
    errors.UniqueViolation: Conflict,
    errors.ExclusionViolation: Conflict,
    errors.RestrictViolation: Conflict,
    errors.ForeignKeyViolation: NotFound,
    errors.DataError: InvalidRequest,
    errors.ProgramLimitExceeded: InvalidRequest,  # larger than an index or a column takes: it will not fit later either
    errors.StatementTooComplex: InvalidRequest,
    errors.InvalidPassword: AuthError,
    errors.InvalidAuthorizationSpecification: AuthError,
    errors.InsufficientPrivilege: ConfigurationError,
    errors.InvalidCatalogName: ConfigurationError,
    errors.UndefinedTable: ConfigurationError,
    errors.UndefinedColumn: ConfigurationError,
    errors.UndefinedFunction: ConfigurationError,
    errors.UndefinedObject: ConfigurationError,
    errors.ReadOnlySqlTransaction: StoreUnavailable,  # a failover left us at the standby
    errors.IdleInTransactionSessionTimeout: StoreUnavailable,
    errors.TransactionTimeout: StoreUnavailable,
    errors.OperationalError: StoreUnavailable,
    errors.InterfaceError: StoreUnavailable,
    errors.Error: InvariantViolated,
}


@contextmanager
def translating() -> Iterator[None]:
    """Raise psycopg's errors as ours, with the original as the cause."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"a text holds what no database can store: {error}") from error


def translate(error: psycopg.Error) -> HoldfastError:
    """`error` as one of ours. Facts: `sqlstate` and `constraint`, where the server named them."""
    kind = NotFound if _refused_by_row_security(error) else _kind_of(error)
    facts = {"sqlstate": error.sqlstate, "constraint": error.diag.constraint_name}
    return kind(_message(kind, error), **{name: value for name, value in facts.items() if value is not None})


def _kind_of(error: psycopg.Error) -> type[HoldfastError]:
    return next(TRANSLATIONS[kind] for kind in type(error).__mro__ if kind in TRANSLATIONS)


def _refused_by_row_security(error: psycopg.Error) -> bool:
    # It shares its SQLSTATE with a missing grant; only the place in the server tells the two apart in any language.
    return isinstance(error, errors.InsufficientPrivilege) and error.diag.source_function == "ExecWithCheckOptions"


def _message(kind: type[HoldfastError], error: psycopg.Error) -> str:
    said = " ".join((error.diag.message_primary or str(error) or type(error).__name__).split())
    constraint = error.diag.constraint_name
    rule = f" (rule: {constraint.replace('_', ' ')})" if constraint else ""
    if kind is StoreUnavailable:
        return f"Postgres is not available: {said}"
    if kind is NotFound and rule == "":
        return f"the row belongs to another tenant: {said}"
    if kind is ConfigurationError:
        return f"the database does not fit this version of holdfast ({said}); run: holdfast db upgrade"
    return f"the database refused: {said}{rule}"
