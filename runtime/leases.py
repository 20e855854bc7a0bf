"""A worker's hold on a run, and its local end: when the worker must have let go, by its own clock."""

import math
import threading
from dataclasses import dataclass

from holdfast.contracts.errors import ConfigurationError
from holdfast.contracts.runs import Owner, RunClaim
from holdfast.runtime.clock import boot_seconds

_MARGIN_SECONDS = 3.0
_LONGEST_TICK_SECONDS = 0.5
_ENDED = -math.inf


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """How long a hold lasts and how it is kept. A beat every fifth leaves three to lose.

    What is None follows from the rest. Raises `ConfigurationError` for terms that contradict each other.
    """

    ttl_seconds: float = 15.0
    margin: float | None = None
    """In seconds; see `margin_seconds`."""
    beat: float | None = None
    """In seconds; see `beat_seconds`."""

    def __post_init__(self) -> None:
        if not 0 < self.ttl_seconds < math.inf:
            raise ConfigurationError(f"lease_ttl_seconds must be above 0 and finite, not {self.ttl_seconds:g}")
        if not 0 < self.margin_seconds < self.ttl_seconds:
            raise ConfigurationError(
                f"margin_seconds is {self.margin_seconds:g}, and lease_ttl_seconds {self.ttl_seconds:g}: a worker "
                "would have to let a run go before it has it. Set a margin between 0 and the lease, or a longer lease"
            )
        if not 0 < 2 * self.beat_seconds <= self.usable_seconds:
            raise ConfigurationError(
                f"beat_seconds is {self.beat_seconds:g}, and a worker counts on a lease for {self.usable_seconds:g} s "
                "(lease_ttl_seconds less margin_seconds): one beat without an answer would lose it its runs. Set at "
                f"most {self.usable_seconds / 2:g}, or a longer lease"
            )

    @property
    def margin_seconds(self) -> float:
        """The worker lets go this much before the database does: C code that holds the GIL delays the beat
        (1.5 s was seen), and what was sent at the last moment must not meet the next owner's. A lease shorter than
        the default has less of it: a fifth."""
        return min(_MARGIN_SECONDS, self.ttl_seconds / 5) if self.margin is None else self.margin

    @property
    def usable_seconds(self) -> float:
        """For so long after it was asked for, a lease holds by the worker's own clock."""
        return self.ttl_seconds - self.margin_seconds

    @property
    def beat_seconds(self) -> float:
        """Seconds between heartbeats, and the longest that one may take: an answer that comes later is given up."""
        return min(self.ttl_seconds / 5, self.usable_seconds / 4) if self.beat is None else self.beat

    @property
    def tick_seconds(self) -> float:
        """The event loop says so often that it lives, and looks so often for holds that have ended."""
        return min(_LONGEST_TICK_SECONDS, self.ttl_seconds / 20, self.margin_seconds / 2)

    @property
    def stall_seconds(self) -> float:
        """When the event loop has not ticked for as long as a lease, its leases are not prolonged any more. A worker
        that is stuck so loses its runs, deliberately, within two leases' time, and another one goes on with them."""
        return self.ttl_seconds


class Hold:
    """One claim, with its own idea of when it ends. Once it has ended it stays ended.

    It is asked by the event loop and by nodes' threads, and prolonged by the heartbeat's: all of it is one number,
    under one lock.
    """

    __slots__ = ("_ends_at", "_lock", "cancel_requested", "claim")

    def __init__(self, claim: RunClaim, ends_at: float) -> None:
        self.claim = claim
        self.cancel_requested = claim.run.cancel_requested
        self._ends_at = ends_at
        self._lock = threading.Lock()

    @property
    def owner(self) -> Owner:
        """What the fence compares."""
        return self.claim.owner

    @property
    def ended(self) -> bool:
        """Whether it has ended, as far as anybody has noticed."""
        return self._ends_at == _ENDED

    def still_ours(self) -> bool:
        """Whether the lease holds, by our own clock. Latched: a paused process does not come back to life."""
        return self.seconds_left() > 0

    def seconds_left(self) -> float:
        """Until it ends by our own clock, unless it is prolonged; 0 once it has ended, for good."""
        with self._lock:
            left = self._ends_at - boot_seconds()
            if left <= 0:
                self._ends_at = _ENDED
            return max(0.0, left)

    def prolong(self, ends_at: float) -> None:
        """Let it end later, on the boot clock. Whoever was told that it has ended must not see it come back."""
        with self._lock:
            if not self.ended:
                self._ends_at = max(self._ends_at, ends_at)

    def end(self) -> None:
        """Let go for good."""
        with self._lock:
            self._ends_at = _ENDED
