"""Identifiers. Each is a string that says what it names; generated ones are UUIDv7, printed bare."""

from typing import NewType
from uuid import UUID

from holdfast.contracts.errors import InvalidRequest

TenantId = NewType("TenantId", str)
ThreadId = NewType("ThreadId", str)
"""Ours, made from (tenant, thread key), so that no tenant can name another's thread."""
RunId = NewType("RunId", str)
CallId = NewType("CallId", str)
ApprovalId = NewType("ApprovalId", str)
BudgetId = NewType("BudgetId", str)
"""A run's budget has the run's id; a tenant's and a specialist's have ids of their own."""


def uuid_text(value: str, *, what: str) -> str:
    """Return `value` as a canonical UUID, or raise `InvalidRequest` naming `what` it should have identified."""
    try:
        return str(UUID(value))
    except (ValueError, AttributeError, TypeError) as error:
        article = "an" if what[0] in "aeiou" else "a"
        raise InvalidRequest(f"{value!r} is not the id of {article} {what}; ids look like 0198c0de-....") from error
