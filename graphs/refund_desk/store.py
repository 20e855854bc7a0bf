"""The outside world's ledger of refunds: what a payment provider would keep. It is none of holdfast's own tables.

It has a database of its own and honours idempotency keys, as payment providers do: the same key pays once and is
told the same refund again. The file is chosen by `configure`; by default it is in the user's data folder.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from platformdirs import user_data_path

from holdfast.contracts.errors import Conflict

_SCHEMA = """
create table if not exists refunds (
    refund_id       integer primary key,
    idempotency_key text not null unique,
    tenant_id       text not null,
    order_id        text not null,
    cents           integer not null check (cents > 0),
    reason          text not null,
    paid_at         text not null default current_timestamp
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidRefund:
    """A row of the ledger: money that has left."""

    refund_id: str
    tenant_id: str
    order_id: str
    amount_usd: str
    reason: str
    paid_at: datetime
    idempotency_key: str


class RefundLedger:
    """Refunds in one SQLite file. Its methods block; call them off the loop. Safe between processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pay(
        self, *, idempotency_key: str, tenant_id: str, order_id: str, amount_usd: str, reason: str, at_most_usd: str
    ) -> PaidRefund:
        """Pay once per key. Raises `Conflict` when the tenant's refunds of the order would pass `at_most_usd`."""
        with self._transaction() as connection:
            known = connection.execute("select 1 from refunds where idempotency_key = ?", [idempotency_key]).fetchone()
            if known is None:
                left = _cents(at_most_usd) - _refunded(connection, tenant_id, order_id)
                if _cents(amount_usd) > left:
                    raise Conflict(
                        f"order {order_id} has ${_dollars(left)} left to refund, so ${amount_usd} was not paid",
                        order_id=order_id,
                        refundable_usd=_dollars(left),
                    )
                connection.execute(
                    "insert into refunds (idempotency_key, tenant_id, order_id, cents, reason) values (?, ?, ?, ?, ?)",
                    [idempotency_key, tenant_id, order_id, _cents(amount_usd), reason],
                )
            row = connection.execute("select * from refunds where idempotency_key = ?", [idempotency_key]).fetchone()
            return _refund(row)

    def refunded_usd(self, tenant_id: str, order_id: str) -> str:
        """What was refunded of an order so far."""
        with self._transaction() as connection:
            return _dollars(_refunded(connection, tenant_id, order_id))

    def refunds(self) -> list[PaidRefund]:
        """All refunds, oldest first."""
        with self._transaction() as connection:
            return [_refund(row) for row in connection.execute("select * from refunds order by refund_id")]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("begin immediate")  # before reading: two payers must not both see the same rest
            connection.execute(_SCHEMA)
            try:
                yield connection
            except BaseException:
                connection.execute("rollback")
                raise
            connection.execute("commit")


_ledger: RefundLedger | None = None


def configure(path: Path) -> RefundLedger:
    """Keep this process's refunds in `path` from now on."""
    global _ledger  # the one ledger that the tool of a module-level graph can reach
    _ledger = RefundLedger(path)
    return _ledger


def ledger() -> RefundLedger:
    """This process's ledger."""
    return _ledger or configure(user_data_path("holdfast") / "refund_desk.sqlite3")


def _refunded(connection: sqlite3.Connection, tenant_id: str, order_id: str) -> int:
    query = "select coalesce(sum(cents), 0) from refunds where tenant_id = ? and order_id = ?"
    return int(connection.execute(query, [tenant_id, order_id]).fetchone()[0])


def _refund(row: sqlite3.Row) -> PaidRefund:
    return PaidRefund(
        refund_id=f"R-{row['refund_id']:04d}",
        tenant_id=row["tenant_id"],
        order_id=row["order_id"],
        amount_usd=_dollars(row["cents"]),
        reason=row["reason"],
        paid_at=datetime.fromisoformat(row["paid_at"]).replace(tzinfo=UTC),
        idempotency_key=row["idempotency_key"],
    )


def _cents(amount_usd: str) -> int:
    return int(Decimal(amount_usd) * 100)


def _dollars(cents: int) -> str:
    return f"{Decimal(cents) / 100:.2f}"
