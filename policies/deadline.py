"""Timeouts are derived from deadlines; nothing below a run outlives it."""

from holdfast.contracts.deadline import Deadline


def timeout_seconds(deadline: Deadline, cap: float | None = None, *, what: str = "the call") -> float:
    """The seconds that `what` may take: what is left of the deadline, and no more than `cap`.

    Raises `DeadlineExceeded` when nothing is left.
    """
    remaining = deadline.require(what)
    return remaining if cap is None else min(remaining, cap)
