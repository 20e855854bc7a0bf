"""Claims runs and executes them side by side, stops those it has lost, and lets go in order.

The leases themselves are kept by the heart, in a thread; this loop only tells it that it lives.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf

from langgraph.runtime import RunControl

from holdfast.contracts.classification import translated
from holdfast.contracts.ids import RunId
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.patience import patient
from holdfast.contracts.ports import Approvals, Retention, Tenants, Workers
from holdfast.contracts.runs import GraphVersion
from holdfast.contracts.tenancy import Principal
from holdfast.contracts.workers import ServedGraph
from holdfast.runtime.clock import boot_seconds
from holdfast.runtime.coordinator import Coordinator
from holdfast.runtime.holds import Holds
from holdfast.runtime.leases import Hold, LeaseTerms
from holdfast.runtime.pruning import Pruner
from holdfast.runtime.registry import Registry
from holdfast.runtime.wake import Wake
from holdfast.telemetry.logs import logger

log = logger(__name__)

_JUST_AFTER_SECONDS = 0.01
_LINGER_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTerms:
    """How much a worker takes on and how it lets go."""

    slots: int = 4
    """Runs at once."""
    lease: LeaseTerms = field(default_factory=LeaseTerms)
    expiry_seconds: float = 5.0
    """How often overdue approvals are looked for."""
    presence_seconds: float = 5.0
    """How often the worker says that it is there, and what it serves; who has missed two of these is gone."""
    prune_seconds: float = 600.0
    """How often what the tenants' terms let go of is pruned."""
    grace_seconds: float = 10.0
    """How long runs may go on to their next boundary when the worker shuts down."""


@dataclass(slots=True, eq=False)
class _Job:
    hold: Hold
    control: RunControl
    task: asyncio.Task[None]
    stopped: bool = False

    def stop(self) -> None:
        """Cancel the attempt, once: a second cancellation would cut off the clean-up that follows the first, which is
        bounded by itself."""
        if not self.stopped:
            self.stopped = True
            self.task.cancel()


class Worker:
    """One process's worker. `work()` runs until it is cancelled or `stop()` is called; then it drains."""

    def __init__(
        self,
        worker_id: str,
        *,
        coordinator: Coordinator,
        holds: Holds,
        registry: Registry,
        approvals: Approvals,
        workers: Workers,
        retention: Retention,
        tenants: Tenants,
        wake: Wake,
        terms: WorkerTerms,
    ) -> None:
        self._worker_id = worker_id
        self._principal = Principal(user_id=f"worker:{worker_id}", tenants=None)
        self._coordinator = coordinator
        self._holds = holds
        self._registry = registry
        self._approvals = approvals
        self._workers = workers
        self._pruner = Pruner(retention, tenants, self._principal)
        self._wake = wake
        self._terms = terms
        self._announced: list[ServedGraph] | None = None
        self._jobs: set[_Job] = set()
        self._stopping = asyncio.Event()
        self._stopped_at = inf
        self._hurried = False
        self._news = asyncio.Event()

    def asked_to_stop(self, run_id: RunId) -> None:
        """A hint that someone wants a run to stop. Where it is held here, the heartbeat is asked at once whether that
        is so; without the hint it would hear of it with its next beat."""
        if self._holds.has(run_id):
            self._holds.heart.hurry()

    def stop(self) -> None:
        """Take nothing new, let runs reach their next boundary, and then end."""
        if not self._stopping.is_set():
            self._stopped_at = boot_seconds()
        self._stopping.set()
        self._wake.ring()

    def hand_back(self) -> None:
        """Stop without waiting for boundaries: cancel what is under way, and give its runs back as soon as their nodes
        have cleaned up."""
        self.stop()
        self._hurried = True
        for job in self._jobs:
            job.stop()

    async def work(self) -> None:
        """Claim and execute until stopped. The heart beats until the last run has been let go."""
        async with asyncio.TaskGroup() as keepers:
            beating = keepers.create_task(self._holds.heart.live(news=self._news.set))
            watching = keepers.create_task(self._watch())
            expiring = keepers.create_task(self._every(self._terms.expiry_seconds, self._expire))
            showing = keepers.create_task(self._every(self._terms.presence_seconds, self._announce))
            pruning = keepers.create_task(self._every(self._terms.prune_seconds, self._pruner.prune))
            async with asyncio.TaskGroup() as attempts:
                try:
                    await self._claim_until_stopped(attempts)
                finally:
                    for housekeeper in (showing, expiring, pruning):  # which others do too: this one is in a hurry
                        housekeeper.cancel()
                    await self._drain()
            for keeper in (watching, beating):
                keeper.cancel()

    async def _claim_until_stopped(self, attempts: asyncio.TaskGroup) -> None:
        while not self._stopping.is_set():
            bell = self._wake.listen()
            # Those that cannot be opened here wait for a worker that can, and must not keep others from a place.
            free = self._terms.slots - sum(job.hold.claim.run.unreadable is None for job in self._jobs)
            with patient(self._seconds_to_linger):
                holds = await self._claimed(free) if free > 0 else []
                foreseen = await self._foreseen() if free > 0 and not holds else None
            for hold in holds:
                self._start(attempts, hold)
            if not holds:
                await self._wake.heard(bell, at_most_seconds=foreseen)

    async def _claimed(self, free: int) -> list[Hold]:
        try:
            return await self._holds.claim(graphs=await self._served(), slots=free)
        except Exception as error:  # noqa: BLE001  # the next poll tries again; the runs that go on need the worker
            log.warning("claim_failed", reason=translated(error).message)
            return []

    async def _served(self) -> Mapping[GraphVersion, str]:
        """Whose runs may be claimed. Which versions lie in a range is not for the database to say, so it is asked
        which there are; where no graph declares a range, a claim is one statement."""
        if self._announced != self._registry.notice():
            await self._announce()
        ranged = self._registry.ranged()
        return self._registry.served(await self._workers.claimable(ranged) if ranged else ())

    async def _foreseen(self) -> float | None:
        """Seconds until a run may be there whose worker was lost: nothing rings when a lease runs out."""
        try:
            seconds = await self._holds.seconds_to_next_expiry()
        except Exception as error:  # noqa: BLE001  # then it is found by polling
            log.warning("expiry_not_foreseen", reason=translated(error).message)
            return None
        return None if seconds is None else seconds + _JUST_AFTER_SECONDS

    def _seconds_to_linger(self) -> float:
        """How long the worker's own questions may still take. One that stops does not wait for a deaf database."""
        if not self._stopping.is_set():
            return inf
        return max(0.0, self._stopped_at + _LINGER_SECONDS - boot_seconds())

    def _start(self, attempts: asyncio.TaskGroup, hold: Hold) -> None:
        control = RunControl()
        job = _Job(hold, control, attempts.create_task(self._execute(hold, control), name=f"run {hold.claim.run_id}"))
        self._jobs.add(job)
        job.task.add_done_callback(lambda _: self._done(job))

    async def _execute(self, hold: Hold, control: RunControl) -> None:
        try:
            await self._coordinator.execute(hold, control)
        except (Exception, GeneratorExit):  # one run's trouble must not end the worker; it is taken over in time
            log.exception("attempt_failed", run_id=hold.claim.run_id)

    def _done(self, job: _Job) -> None:
        self._jobs.discard(job)
        self._holds.drop(job.hold)
        self._wake.ring()

    async def _watch(self) -> None:
        """Say that this loop lives, and stop what is lost or not wanted any more."""
        while True:
            self._news.clear()
            self._holds.heart.tick()
            for job in self._jobs:
                if job.hold.cancel_requested or not job.hold.still_ours():
                    job.stop()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._terms.lease.tick_seconds):
                    await self._news.wait()

    async def _expire(self) -> None:
        with patient(self._seconds_to_linger):
            overdue = await self._approvals.expire(principal=self._principal)
        if overdue:
            self._wake.ring()

    async def _announce(self) -> None:
        notice = self._registry.notice()
        with patient(self._seconds_to_linger):
            await self._workers.announce(self._worker_id, notice, ttl_seconds=2.5 * self._terms.presence_seconds)
        self._announced = notice

    async def _leave(self) -> None:
        try:
            with patient(self._seconds_to_linger):
                await self._workers.leave(self._worker_id)
        except Exception as error:  # noqa: BLE001  # then it is forgotten in time
            log.warning("leave_failed", reason=translated(error).message)

    async def _every(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await act()
            except Exception as error:  # noqa: BLE001  # the next time it may be done
                log.warning("housekeeping_failed", what=getattr(act, "__name__", "?"), reason=translated(error).message)

    async def _drain(self) -> None:
        """Stop at the next boundary, then by cancellation; the leases are kept until it is done."""
        for job in self._jobs:
            job.control.request_drain("the worker is shutting down")
        await reach(Mark.DRAIN_BEGUN)
        await self._leave()  # it takes nothing new, so nobody must count on it
        tasks = [job.task for job in self._jobs]
        if tasks and not self._hurried:
            await asyncio.wait(tasks, timeout=self._terms.grace_seconds)
        for job in self._jobs:
            job.stop()
