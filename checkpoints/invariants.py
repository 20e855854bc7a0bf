"""What must hold in any database of ours, asked of its rows. `holdfast.testing.invariants` has it for tests."""

from collections.abc import Mapping, Sequence

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.queries import load_queries
from holdfast.contracts.ids import TenantId

_SQL = load_queries(__name__, "invariants.sql")


async def violations(database: Database, *, tenants: Sequence[TenantId]) -> Mapping[str, Sequence[str]]:
    """What violates each rule of `invariants.sql`, by its name, in the rows of `tenants`; nothing where it holds."""
    found = {}
    async with database.tenants(tenants) as conn:
        for name, query in _SQL.items():
            rows = await (await conn.execute(query)).fetchall()
            found[name] = [f"{row['subject']}: {row['detail']}" for row in rows]
    return found
