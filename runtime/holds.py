"""All runs that a worker holds: what it claims, and what it lets go."""

from collections.abc import Mapping

from holdfast.contracts.ids import RunId
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.ports import Leases
from holdfast.contracts.runs import GraphVersion
from holdfast.runtime.clock import boot_seconds
from holdfast.runtime.heart import Heart
from holdfast.runtime.leases import Hold, LeaseTerms


class Holds:
    """All runs that a worker holds, and the heart that keeps them."""

    def __init__(self, leases: Leases, heart: Heart, worker_id: str, terms: LeaseTerms) -> None:
        self._leases = leases
        self._worker_id = worker_id
        self._terms = terms
        self._holds: dict[RunId, Hold] = {}
        self._in_doubt = False
        """Whether a claim may have been committed of which nothing was heard."""
        self.heart = heart

    async def claim(self, *, graphs: Mapping[GraphVersion, str], slots: int) -> list[Hold]:
        """Claim up to `slots` runs of these versions, each given with the one whose code serves it. What an earlier
        claim took without an answer can be claimed at once, by this worker or another."""
        if self._in_doubt:
            await self._leases.disown(self._worker_id, held=list(self._holds))
        self._in_doubt = True
        sent = boot_seconds()
        claims = await self._leases.claim(
            self._worker_id, tenants=None, graphs=graphs, slots=slots, ttl_seconds=self._terms.ttl_seconds
        )
        self._in_doubt = False
        await reach(Mark.RUN_CLAIMED)
        holds = [Hold(claim, sent + self._terms.usable_seconds) for claim in claims]
        for hold in holds:
            self._holds[hold.claim.run_id] = hold
            self.heart.keep(hold)
        if holds and boot_seconds() - sent > self._terms.beat_seconds:
            await self.heart.beat()  # the answer was long in coming: by our clock there is little left, or nothing
        return holds

    async def seconds_to_next_expiry(self) -> float | None:
        """Until a run may be there to be taken over, unless its worker prolongs its lease; None: not foreseeable."""
        return await self._leases.seconds_to_next_expiry()

    def has(self, run_id: RunId) -> bool:
        """Whether this worker holds the run."""
        return run_id in self._holds

    def drop(self, hold: Hold) -> None:
        """Forget a hold whose attempt is over."""
        hold.end()
        self.heart.leave(hold)
        if self._holds.get(hold.claim.run_id) is hold:
            del self._holds[hold.claim.run_id]
