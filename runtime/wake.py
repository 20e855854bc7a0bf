"""Wakes whoever waits for work or for a run's end. A hint: polling is the truth."""

import asyncio


class Wake:
    """A bell that every waiter hears. It may ring for nothing; it is never relied upon."""

    def __init__(self, poll_seconds: float = 1.0) -> None:
        self._poll_seconds = poll_seconds
        self._bell = asyncio.Event()

    def ring(self) -> None:
        """Wake everyone who waits now."""
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()

    def listen(self) -> asyncio.Event:
        """Take hold of the next ring; take it before looking, so that a ring in between is not missed."""
        return self._bell

    async def heard(self, bell: asyncio.Event, *, at_most_seconds: float | None = None) -> None:
        """Wait for a ring taken by `listen`, or for the time to look again by oneself."""
        wait = self._poll_seconds if at_most_seconds is None else min(self._poll_seconds, at_most_seconds)
        try:
            async with asyncio.timeout(wait):
                await bell.wait()
        except TimeoutError:
            return
