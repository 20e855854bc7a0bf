"""All ports of one database, put together."""

from holdfast.checkpoints.approvals import PostgresApprovals
from holdfast.checkpoints.database import Database
from holdfast.checkpoints.events import PostgresEvents
from holdfast.checkpoints.heartbeat import PostgresHeartbeat
from holdfast.checkpoints.journal import PostgresJournal
from holdfast.checkpoints.leases import PostgresLeases
from holdfast.checkpoints.ledger import PostgresLedger
from holdfast.checkpoints.retention import PostgresRetention
from holdfast.checkpoints.runs import PostgresRuns
from holdfast.checkpoints.tenants import PostgresTenants
from holdfast.checkpoints.workers import PostgresWorkers
from holdfast.contracts.ports import Ids


class PostgresStore:
    """`contracts.ports.Store` on Postgres. The database is opened and closed by whoever gave it."""

    def __init__(self, database: Database, ids: Ids) -> None:
        self._database = database
        self.runs = PostgresRuns(database, ids)
        self.leases = PostgresLeases(database)
        self.journal = PostgresJournal(database)
        self.ledger = PostgresLedger(database, ids)
        self.events = PostgresEvents(database)
        self.approvals = PostgresApprovals(database, ids)
        self.retention = PostgresRetention(database)
        self.tenants = PostgresTenants(database, ids)
        self.workers = PostgresWorkers(database)

    def heartbeat(self, *, within_seconds: float) -> PostgresHeartbeat:
        return PostgresHeartbeat(self._database.line_apart("heartbeat", within_seconds=within_seconds))
