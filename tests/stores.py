"""The stores that take the conformance tests."""

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.store import PostgresStore
from holdfast.runtime.entropy import SystemIds
from holdfast.testing.clock import VirtualClock
from holdfast.testing.memory import MemoryStore


class TickingClock(VirtualClock):
    """Time passes between any two statements, as it does in a database."""

    def now(self) -> float:
        self.advance(0.001)
        return super().now()

    def monotonic(self) -> float:
        self.advance(0.001)
        return super().monotonic()


def postgres_store(database: Database) -> PostgresStore:
    return PostgresStore(database, SystemIds())


def memory_store() -> MemoryStore:
    return MemoryStore(clock=TickingClock())
