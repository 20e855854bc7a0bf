"""Claims runs and executes them side by side, keeps their leases alive, and lets go in order."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from langgraph.runtime import RunControl

from holdfast.contracts.classification import translated
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.ports import Approvals
from holdfast.contracts.tenancy import Principal
from holdfast.runtime.coordinator import Coordinator
from holdfast.runtime.leases import Hold, Holds, LeaseTerms
from holdfast.runtime.registry import Registry
from holdfast.runtime.wake import Wake
from holdfast.telemetry.logs import logger

log = logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTerms:
    """How much a worker takes on and how it lets go."""

    slots: int = 16
    """Runs at once."""
    lease: LeaseTerms = field(default_factory=LeaseTerms)
    expiry_seconds: float = 5.0
    """How often overdue approvals are looked for."""
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
        wake: Wake,
        terms: WorkerTerms,
    ) -> None:
        self._principal = Principal(user_id=f"worker:{worker_id}", tenants=None)
        self._coordinator = coordinator
        self._holds = holds
        self._registry = registry
        self._approvals = approvals
        self._wake = wake
        self._terms = terms
        self._jobs: set[_Job] = set()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Take nothing new, let runs reach their next boundary, and then end."""
        self._stopping.set()
        self._wake.ring()

    async def work(self) -> None:
        """Claim and execute until stopped. Leases are kept alive until the last run has been let go."""
        async with asyncio.TaskGroup() as keepers:
            beating = keepers.create_task(self._every(self._terms.lease.beat_seconds, self._beat))
            expiring = keepers.create_task(self._every(self._terms.expiry_seconds, self._expire))
            async with asyncio.TaskGroup() as attempts:
                try:
                    await self._claim_until_stopped(attempts)
                finally:
                    await self._drain()
            beating.cancel()
            expiring.cancel()

    async def _claim_until_stopped(self, attempts: asyncio.TaskGroup) -> None:
        while not self._stopping.is_set():
            bell = self._wake.listen()
            free = self._terms.slots - len(self._jobs)
            try:
                holds = await self._holds.claim(graphs=self._registry.served(), slots=free) if free > 0 else []
            except Exception as error:  # noqa: BLE001  # the next poll tries again; the runs that go on need the worker
                log.warning("claim_failed", reason=translated(error).message)
                holds = []
            for hold in holds:
                self._start(attempts, hold)
            if not holds:
                await self._wake.heard(bell)

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

    async def _beat(self) -> None:
        for hold in await self._holds.beat():
            for job in self._jobs:
                if job.hold is hold:
                    job.stop()

    async def _expire(self) -> None:
        if await self._approvals.expire(principal=self._principal):
            self._wake.ring()

    async def _every(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await act()
            except Exception as error:  # noqa: BLE001  # without heartbeats every run would be lost
                log.warning("housekeeping_failed", what=getattr(act, "__name__", "?"), reason=translated(error).message)

    async def _drain(self) -> None:
        """Stop at the next boundary, then by cancellation; the leases are kept until it is done."""
        for job in self._jobs:
            job.control.request_drain("the worker is shutting down")
        await reach(Mark.DRAIN_BEGUN)
        tasks = [job.task for job in self._jobs]
        if tasks:
            await asyncio.wait(tasks, timeout=self._terms.grace_seconds)
        for job in self._jobs:
            job.stop()
