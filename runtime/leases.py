"""A worker's holds on its runs: the local end of each lease, and the heartbeat that prolongs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.contracts.errors import StoreUnavailable
from holdfast.contracts.ids import RunId
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.ports import Leases, Renewal
from holdfast.contracts.runs import GraphVersion, Owner, RunClaim
from holdfast.runtime.clock import boot_seconds

_MARGIN_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """How long a hold lasts and how it is kept. A beat every fifth leaves four to lose."""

    ttl_seconds: float = 15.0

    @property
    def margin_seconds(self) -> float:
        """The worker lets go this much before the database does: C code that holds the GIL delays the beat
        (1.5 s was seen), and what was sent at the last moment must not meet the next owner's. A lease shorter than
        the default has less of it: a fifth."""
        return min(_MARGIN_SECONDS, self.ttl_seconds / 5)

    @property
    def beat_seconds(self) -> float:
        """Seconds between heartbeats."""
        return self.ttl_seconds / 5


@dataclass(slots=True, eq=False)
class Hold:
    """One claim, with its own idea of when it ends. Once it has ended it stays ended."""

    claim: RunClaim
    ends_at: float
    """On the boot clock: send time + TTL - margin."""
    cancel_requested: bool = False
    _ended: bool = field(default=False, init=False)

    @property
    def owner(self) -> Owner:
        """What the fence compares."""
        return self.claim.owner

    def still_ours(self) -> bool:
        """Whether the lease holds, by our own clock. Latched: a paused process does not come back to life."""
        if not self._ended and boot_seconds() >= self.ends_at:
            self._ended = True
        return not self._ended

    def end(self) -> None:
        """Let go for good."""
        self._ended = True


class Holds:
    """All runs that a worker holds."""

    def __init__(self, leases: Leases, worker_id: str, terms: LeaseTerms) -> None:
        self._leases = leases
        self._worker_id = worker_id
        self._terms = terms
        self._holds: dict[RunId, Hold] = {}

    async def claim(self, *, graphs: Sequence[GraphVersion], slots: int) -> list[Hold]:
        """Claim up to `slots` runs of these graphs."""
        sent = boot_seconds()
        claims = await self._leases.claim(
            self._worker_id, tenants=None, graphs=graphs, slots=slots, ttl_seconds=self._terms.ttl_seconds
        )
        await reach(Mark.RUN_CLAIMED)
        holds = [Hold(claim, self._end(sent), cancel_requested=claim.run.cancel_requested) for claim in claims]
        self._holds.update({hold.claim.run_id: hold for hold in holds})
        if boot_seconds() - sent > self._terms.beat_seconds:
            await self._renew(holds)  # the answer was long in coming: by our clock there is little left, or nothing
        return holds

    def drop(self, hold: Hold) -> None:
        """Forget a hold whose attempt is over."""
        hold.end()
        if self._holds.get(hold.claim.run_id) is hold:
            del self._holds[hold.claim.run_id]

    async def beat(self) -> list[Hold]:
        """Prolong every hold; returns those that are lost, or whose run has been asked to stop."""
        await self._renew([hold for hold in self._holds.values() if hold.still_ours()])
        return [hold for hold in self._holds.values() if not hold.still_ours() or hold.cancel_requested]

    async def _renew(self, holds: Sequence[Hold]) -> None:
        await reach(Mark.LEASE_RENEWING)
        sent = boot_seconds()
        try:
            answers = await self._leases.renew(
                self._worker_id, [hold.owner for hold in holds], ttl_seconds=self._terms.ttl_seconds
            )
        except StoreUnavailable:
            answers = {}  # nobody answered: each hold ends by its own clock unless a later beat gets through
        await reach(Mark.LEASE_RENEWED)
        for hold in holds:
            self._note(hold, answers, self._end(sent))

    def _note(self, hold: Hold, answers: Mapping[RunId, Renewal], ends_at: float) -> None:
        answer = answers.get(hold.claim.run_id)
        if answer is None:
            return
        hold.cancel_requested = hold.cancel_requested or answer.cancel_requested
        if answer.held:
            hold.ends_at = ends_at
        else:
            hold.end()

    def _end(self, sent: float) -> float:
        return sent + self._terms.ttl_seconds - self._terms.margin_seconds
