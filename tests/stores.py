"""The stores that take the conformance tests."""

from holdfast.checkpoints.approvals import PostgresApprovals
from holdfast.checkpoints.database import Database
from holdfast.checkpoints.events import PostgresEvents
from holdfast.checkpoints.journal import PostgresJournal
from holdfast.checkpoints.leases import PostgresLeases
from holdfast.checkpoints.ledger import PostgresLedger
from holdfast.checkpoints.runs import PostgresRuns
from holdfast.checkpoints.tenants import PostgresTenants
from holdfast.runtime.entropy import SystemIds
from holdfast.testing.clock import VirtualClock
from holdfast.testing.memory import MemoryStore


class TickingClock(VirtualClock):
    """Time passes between any two statements, as it does in a database."""

    def now(self) -> float:
        self.advance(0.001)
        return super().now()


class PostgresPorts:
    """The ports of one database."""

    def __init__(self, database: Database) -> None:
        ids = SystemIds()
        self.runs = PostgresRuns(database, ids)
        self.leases = PostgresLeases(database, ids)
        self.journal = PostgresJournal(database, ids)
        self.ledger = PostgresLedger(database, ids)
        self.events = PostgresEvents(database, ids)
        self.approvals = PostgresApprovals(database, ids)
        self.tenants = PostgresTenants(database, ids)


def memory_store() -> MemoryStore:
    return MemoryStore(clock=TickingClock())
