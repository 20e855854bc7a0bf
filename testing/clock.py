"""Time and randomness that a test turns by hand."""

from datetime import UTC, datetime

from holdfast.contracts.errors import InvalidRequest

_START = datetime(2030, 1, 1, tzinfo=UTC).timestamp()


class VirtualClock:
    """A clock that stands still until it is advanced. Its wall clock can jump; its monotonic one cannot."""

    def __init__(self, *, now: float = _START) -> None:
        self._monotonic = 0.0
        self._wall_ahead = now

    def monotonic(self) -> float:
        return self._monotonic

    def now(self) -> float:
        return self._wall_ahead + self._monotonic

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass, on both clocks."""
        if seconds < 0:
            raise InvalidRequest(f"time does not run backwards ({seconds} s); a wall clock may jump: use jump()")
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator or NTP does. The monotonic clock does not notice."""
        self._wall_ahead += seconds


class FixedDice:
    """Randomness that always falls the same."""

    def __init__(self, fraction: float = 0.5) -> None:
        self._fraction = fraction

    def fraction(self) -> float:
        return self._fraction
