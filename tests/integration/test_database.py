"""The way to Postgres: whose rows a transaction sees, and what its errors become."""

import pytest

from holdfast.checkpoints.database import Database
from holdfast.contracts.errors import InvalidRequest, NotFound


async def make_tenant(database: Database, name: str) -> None:
    async with database.tenant(name) as conn:
        await conn.execute(
            "insert into tenants (tenant_id, terms, budget_id) values (%s, '{}', gen_random_uuid())", [name]
        )


async def names_seen(database: Database, *tenants: str) -> list[str]:
    async with database.tenants(tenants) as conn:
        rows = await (await conn.execute("select tenant_id from tenants order by 1")).fetchall()
    return [row["tenant_id"] for row in rows]


async def test_tenant_sees_its_own_rows_alone(database: Database) -> None:
    for name in ("acme", "bolt", "core"):
        await make_tenant(database, name)
    assert await names_seen(database, "acme") == ["acme"]
    assert await names_seen(database, "acme", "core") == ["acme", "core"]
    assert await names_seen(database) == []


async def test_tenant_cannot_write_a_row_of_another(database: Database) -> None:
    with pytest.raises(NotFound):
        async with database.tenant("acme") as conn:
            await conn.execute(
                "insert into tenants (tenant_id, terms, budget_id) values ('bolt', '{}', gen_random_uuid())"
            )


@pytest.mark.parametrize("name", ["", "acme,bolt", "a\x00b"])
async def test_text_that_would_name_other_tenants_is_refused(database: Database, name: str) -> None:
    with pytest.raises(InvalidRequest, match="not a tenant id"):
        async with database.tenant(name):
            pass
