"""A deadline is end to end; a timeout is derived from it. Both are kept in monotonic time."""

from dataclasses import dataclass, field
from typing import Protocol

from holdfast.contracts.errors import DeadlineExceeded


class Clock(Protocol):
    """Time as an argument. Implemented in `runtime.clock`; tests pass a virtual one."""

    def monotonic(self) -> float:
        """Seconds that only grow, from an arbitrary start. A jump of the wall clock changes nothing here."""
        ...

    def now(self) -> float:
        """Wall-clock seconds since the epoch, for people to read; nothing is decided by it."""
        ...


@dataclass(frozen=True, slots=True)
class Deadline:
    """The instant, on this process's monotonic clock, by which something must be done."""

    expires_at_monotonic: float
    clock: Clock = field(repr=False, compare=False)

    @classmethod
    def after_seconds(cls, seconds: float, *, clock: Clock) -> "Deadline":
        """A deadline `seconds` from now."""
        return cls(clock.monotonic() + seconds, clock)

    def remaining_seconds(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.expires_at_monotonic - self.clock.monotonic())

    def expired(self) -> bool:
        """Whether nothing is left."""
        return self.remaining_seconds() <= 0.0

    def child(self, seconds: float | None) -> "Deadline":
        """A deadline for work below this one: `seconds` from now, and never later than this."""
        if seconds is None:
            return self
        return Deadline(min(self.expires_at_monotonic, self.clock.monotonic() + seconds), self.clock)

    def require(self, what: str) -> float:
        """Seconds left for `what`; raises `DeadlineExceeded` when there are none."""
        if (remaining := self.remaining_seconds()) <= 0.0:
            raise DeadlineExceeded(f"the run's deadline has passed, so {what} was not started", needed_for=what)
        return remaining
