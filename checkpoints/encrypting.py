"""Encrypting a database that is in use: for the first time, or under a new key."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from psycopg.rows import dict_row

from holdfast.checkpoints.database import Connection, Database, StoreTerms
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.resealing import seal_thread
from holdfast.checkpoints.sealed_documents import APPROVALS, CALLS, RUNS, SealedDocuments, Table, with_json
from holdfast.checkpoints.sealed_rows import SealedRows, sealed_type
from holdfast.checkpoints.unlocking import complete, keys_in_use, tenants_of
from holdfast.checkpoints.vault import Encryption, Vault
from holdfast.contracts.errors import Conflict

_SQL = load_queries(__name__, "resealing.sql")
_PATIENT = StoreTerms(statement_seconds=3600.0, transaction_seconds=3600.0)
_THREADS_AT_ONCE = 100
_ROWS_AT_ONCE = 200
_TABLES = (RUNS, CALLS, APPROVALS)
_QUERIES = {
    "runs": ("page_of_runs", "seal_run"),
    "calls": ("page_of_calls", "seal_call"),
    "approvals": ("page_of_approvals", "seal_approval"),
}


@dataclass(frozen=True, slots=True)
class Encrypted:
    """What was done."""

    threads: int
    """So many had checkpoints that were not sealed with the key in force."""
    rows: int
    """So many runs, calls and approvals held something that was not."""
    retired: Sequence[str]
    """The ids of the keys that nothing is sealed with any more."""


async def encrypt(dsn: str, encryption: Encryption, *, clear_too: bool = False) -> Encrypted:
    """Seal with the key in force whatever is not, some rows or a thread in a transaction; what was begun goes on when
    it is called again.

    Rows in the clear are sealed too when the database is encrypted for the first time; later only with `clear_too`.

    Raises `Conflict` while workers hold runs of a database that is not encrypted yet, and for checkpoints that an old
    LangGraph has left; `StoreUnavailable` when somebody else changed a thread just then; `SealBroken`; and what keys
    are refused for when a process starts.
    """
    database = Database(dsn, terms=_PATIENT, encryption=encryption)
    try:
        await database.open(to_encrypt=True)
        return await _encrypt(database, clear_too=clear_too)
    finally:
        await database.close()


async def _encrypt(database: Database, *, clear_too: bool) -> Encrypted:
    vault = database.vault
    assert vault is not None, "it was opened with keys"
    async with database.engine() as conn:
        tenants = await tenants_of(conn)
    async with database.unbound() as conn:
        first_time = not all(key["complete"] for key in await keys_in_use(conn))
    if first_time:
        await _require_fit(database, tenants)
    threads = rows = 0
    clear_too = clear_too or first_time
    for tenant_id in tenants:
        for table in _TABLES:
            rows += await _seal_rows(database, SealedDocuments(vault), table, tenant_id, clear_too=clear_too)
        form = SealedRows(vault, tenant_id)
        async for thread in _threads_to_seal(database, vault, tenant_id):
            async with database.tenant(tenant_id, snapshot=True) as conn:
                await seal_thread(conn.cursor(row_factory=dict_row), form, thread, clear_too=clear_too)
            threads += 1
    async with database.unbound() as conn:
        return Encrypted(threads=threads, rows=rows, retired=await complete(conn, vault.seals_with))


async def _seal_rows(
    database: Database, documents: SealedDocuments, table: Table, tenant_id: str, *, clear_too: bool
) -> int:
    page, seal = _QUERIES[table.name]
    after, changed = None, 0
    while True:
        wanted = {"tenant_id": tenant_id, "after": after, "limit": _ROWS_AT_ONCE}
        async with database.tenant(tenant_id) as conn:
            found = await (await conn.execute(_SQL[page], wanted)).fetchall()
            stale = [row for row in found if not documents.is_current(table, row)]
            for row in stale:
                opened = documents.opened_columns(table, row, clear_too=clear_too)
                sealed = documents.sealed(table, tenant_id, str(row[table.key]), {**row, **opened})
                await conn.execute(_SQL[seal], with_json(table, sealed))
        changed += len(stale)
        if len(found) < _ROWS_AT_ONCE:
            return changed
        after = found[-1][table.key]


async def _threads_to_seal(database: Database, vault: Vault, tenant_id: str) -> AsyncIterator[str]:
    after: str | None = None
    key_id = vault.seals_with
    while True:
        wanted = {"key_id": key_id, "type": sealed_type(key_id), "after": after, "limit": _THREADS_AT_ONCE}
        async with database.tenant(tenant_id) as conn:
            found = await (await conn.execute(_SQL["threads_to_seal"], wanted)).fetchall()
        for row in found:
            yield row["thread_id"]
        if len(found) < _THREADS_AT_ONCE:
            return
        after = found[-1]["thread_id"]


async def _require_fit(database: Database, tenants: Sequence[str]) -> None:
    """For the first time: nobody works without keys, and LangGraph's statements need nothing that will be hidden."""
    async with database.engine() as conn:
        if await _found(conn, "runs_under_way"):
            raise Conflict("workers hold runs, and would go on writing in the clear; stop them first")
    for tenant_id in tenants:
        async with database.tenant(tenant_id) as conn:
            if await _found(conn, "holds_old_checkpoints"):
                raise Conflict(
                    f"tenant {tenant_id!r} has checkpoints that a LangGraph before 1.0 has left; go on with their "
                    "threads once, or delete them"
                )


async def _found(conn: Connection, query: str) -> bool:
    row = await (await conn.execute(_SQL[query])).fetchone()
    return bool(row and row["found"])
