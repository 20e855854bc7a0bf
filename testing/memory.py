"""The whole store in memory: the same ports and the same answers as on Postgres, for tests that need no database.

It passes `tests/conformance` beside the Postgres store. Each method of a port is one commit, all or nothing; nothing
survives the process.
"""

from holdfast.contracts.deadline import Clock
from holdfast.contracts.ports import Ids
from holdfast.runtime.entropy import SystemIds
from holdfast.testing.clock import VirtualClock
from holdfast.testing.memory_calls import MemoryJournal, MemoryLedger
from holdfast.testing.memory_inbox import MemoryApprovals, MemoryEvents, MemoryTenants
from holdfast.testing.memory_retention import MemoryRetention
from holdfast.testing.memory_runs import MemoryHeartbeat, MemoryLeases, MemoryRuns
from holdfast.testing.memory_state import MemoryState
from holdfast.testing.memory_workers import MemoryWorkers


class MemoryStore:
    """`contracts.ports.Store` in memory. Its time, the leases' and deadlines', is that of `clock`."""

    def __init__(self, *, clock: Clock | None = None, ids: Ids | None = None) -> None:
        state = MemoryState(clock=clock or VirtualClock(), ids=ids or SystemIds())
        self._state = state
        self.runs = MemoryRuns(state)
        self.leases = MemoryLeases(state)
        self.journal = MemoryJournal(state)
        self.ledger = MemoryLedger(state)
        self.events = MemoryEvents(state)
        self.approvals = MemoryApprovals(state)
        self.retention = MemoryRetention(state)
        self.tenants = MemoryTenants(state)
        self.workers = MemoryWorkers(state)

    def heartbeat(self, *, within_seconds: float) -> MemoryHeartbeat:
        return MemoryHeartbeat(self._state)
