"""The heartbeat: a thread that prolongs a worker's leases, whatever the event loop is doing.

It has a loop and a connection of its own, so neither a busy event loop nor a full pool delays it. What it learns it
writes into the holds, which any thread may ask, and then tells the event loop.

It beats for a worker that lives, not for a process that exists: when the event loop has not ticked for
`LeaseTerms.stall_seconds`, nothing is prolonged until it ticks again.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from holdfast.contracts.classification import translated
from holdfast.contracts.ids import RunId
from holdfast.contracts.marks import Mark, reach_in_thread
from holdfast.contracts.ports import Heartbeat, Renewal
from holdfast.runtime.clock import boot_seconds
from holdfast.runtime.leases import Hold, LeaseTerms
from holdfast.telemetry.logs import logger

log = logger(__name__)

_LAST_GRACE_SECONDS = 1.0


class Heart:
    """Keeps the holds of one worker alive. `live()` runs beside the worker, and is its owner."""

    def __init__(self, heartbeat: Heartbeat, worker_id: str, terms: LeaseTerms) -> None:
        self._heartbeat = heartbeat
        self._worker_id = worker_id
        self._terms = terms
        self._lock = threading.Lock()
        self._holds: set[Hold] = set()
        self._ticked_at = boot_seconds()
        self._failing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """The thread's own, once it is there."""
        self._there = asyncio.Event()
        self._next = asyncio.Event()
        self._turn = asyncio.Lock()
        self._stopping = False
        self._tell: Callable[[], None] = lambda: None

    def keep(self, hold: Hold) -> None:
        """Prolong this hold from the next beat on."""
        with self._lock:
            self._holds.add(hold)

    def leave(self, hold: Hold) -> None:
        """Prolong it no more."""
        with self._lock:
            self._holds.discard(hold)

    def tick(self) -> None:
        """The event loop says that it lives."""
        self._ticked_at = boot_seconds()

    def hurry(self) -> None:
        """Beat now, not only when it is time: there may be news."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._next.set)

    async def beat(self) -> None:
        """Beat now; returns when it is done, whatever came of it. For the event loop, which thereby ticks."""
        self.tick()
        await self._there.wait()
        assert self._loop is not None, "it is there"
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._beat(), self._loop))

    async def live(self, *, news: Callable[[], None]) -> None:
        """Beat until cancelled. `news` is called in this loop whenever a hold has ended, or its run is to stop.

        Raises what has ended the thread, which nothing should: without it every run would be lost.
        """
        loop = asyncio.get_running_loop()
        self._tell = partial(_call, loop, news)
        self.tick()
        ended: asyncio.Future[None] = loop.create_future()
        # A daemon: a server that keeps it waiting does not keep the process from its end.
        threading.Thread(target=self._thread, args=(loop, ended), name="holdfast heartbeat", daemon=True).start()
        try:
            await asyncio.shield(ended)
        finally:
            self._stopping = True
            self.hurry()
            await asyncio.wait([ended], timeout=self._terms.beat_seconds + _LAST_GRACE_SECONDS)

    def _thread(self, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[None]") -> None:
        try:
            asyncio.run(self._beat_on(loop))
        except BaseException as error:  # noqa: BLE001  # carried to whoever awaits the end
            _call(loop, partial(ended.set_exception, error))
        else:
            _call(loop, partial(ended.set_result, None))

    async def _beat_on(self, workers_loop: asyncio.AbstractEventLoop) -> None:
        self._loop = asyncio.get_running_loop()
        _call(workers_loop, self._there.set)
        try:
            while not self._stopping:
                await self._beat()
                await self._pause()
        finally:
            self._loop = None
            await self._heartbeat.close()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._terms.beat_seconds):
                await self._next.wait()
        except TimeoutError:
            return
        self._next.clear()

    async def _beat(self) -> None:
        async with self._turn:
            with self._lock:
                holds = [hold for hold in self._holds if not hold.ended]
            if holds and not self._stalled():
                await self._renew(holds)

    def _stalled(self) -> bool:
        silent = boot_seconds() - self._ticked_at
        if silent <= self._terms.stall_seconds:
            return False
        log.warning("heartbeat_withheld", reason=f"the event loop has been blocked for {silent:.1f} s")
        return True

    async def _renew(self, holds: Sequence[Hold]) -> None:
        sent = boot_seconds()
        reach_in_thread(Mark.LEASE_RENEWING)
        try:
            answers = await self._heartbeat.renew(
                self._worker_id, [hold.owner for hold in holds], ttl_seconds=self._terms.ttl_seconds
            )
        except Exception as error:  # noqa: BLE001  # each hold ends by its own clock, unless a later beat gets through
            if not self._failing:
                log.warning("heartbeat_failed", reason=translated(error).message)
            self._failing = True
            return
        self._failing = False
        reach_in_thread(Mark.LEASE_RENEWED)
        for hold in holds:
            _note(hold, answers, sent + self._terms.usable_seconds)
        if any(hold.ended or hold.cancel_requested for hold in holds):
            self._tell()


def _note(hold: Hold, answers: Mapping[RunId, Renewal], ends_at: float) -> None:
    answer = answers.get(hold.claim.run_id)
    if answer is None:
        return
    if answer.cancel_requested:
        hold.cancel_requested = True
    if answer.held:
        hold.prolong(ends_at)
    else:
        hold.end()


def _call(loop: asyncio.AbstractEventLoop, act: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(act)
    except RuntimeError:  # it has been closed: nobody is there to be told
        return
