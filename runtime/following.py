"""Hands out a run's events as they commit, from a number on, without loss and without repeating any.

The events' own numbers are the cursor, and reading is the truth. There is no notification for each commit: Postgres
lets commits that notify through one at a time, which would hold up every worker for the sake of whoever watches. The
bell that rings when a run ends, rests or is queued cuts a wait short; apart from it the pauses between two looks grow
while nothing happens.
"""

from collections.abc import AsyncIterator, Sequence

from holdfast.contracts.errors import StoreUnavailable
from holdfast.contracts.events import Event
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.ports import Events
from holdfast.runtime.waiting import Lookout
from holdfast.runtime.wake import Wake
from holdfast.telemetry.logs import logger

log = logger(__name__)

_PAGE = 500
_SHORTEST_SECONDS = 0.05
_LONGEST_SECONDS = 60.0


class Followers:
    """Whoever follows a run's events in this process."""

    def __init__(self, events: Events, lookout: Lookout, wake: Wake) -> None:
        self._events = events
        self._lookout = lookout
        self._wake = wake

    async def follow(
        self, tenant_id: TenantId, run_id: RunId, *, after: int, until_it_rests: bool
    ) -> AsyncIterator[Event]:
        """The events with a `seq` greater than `after`, until the run has ended, or rests if that will do."""
        pause = _SHORTEST_SECONDS
        while True:
            bell = self._wake.listen()
            page: Sequence[Event] = ()
            try:
                # The status first: whatever a run has written before it ended is then there to be read.
                status = await self._lookout.status(tenant_id, run_id)
                over = status is None or status.final or (until_it_rests and status.resting)
                page = await self._events.read(tenant_id, run_id, after=after, limit=_PAGE)
            except StoreUnavailable as error:
                over = False
                log.warning("following_without_the_database", run_id=run_id, reason=error.message)
            for event in page:
                yield event
                after = event.seq
            if len(page) == _PAGE:
                continue
            if over:
                return
            pause = _SHORTEST_SECONDS if page else min(2 * pause, _LONGEST_SECONDS)
            await self._wake.heard(bell, at_most_seconds=pause)
