"""The tenants' terms, on Postgres."""

from collections.abc import Sequence

from psycopg.types.json import Jsonb

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.ledger import limit_columns
from holdfast.checkpoints.queries import load_queries
from holdfast.contracts.errors import NotFound
from holdfast.contracts.ids import TenantId
from holdfast.contracts.limits import Limits
from holdfast.contracts.ports import Ids
from holdfast.contracts.tenancy import Principal, Tenant

_SQL = load_queries(__name__, "tenants.sql")
_BESIDE = ("retention", "legal_hold")
"""Terms in columns of their own: the version that did not know them refuses terms that it does not know."""
_UNLIMITED = Limits.model_validate(dict.fromkeys(Limits.model_fields))


class PostgresTenants:
    """`contracts.ports.Tenants` on Postgres."""

    def __init__(self, database: Database, ids: Ids) -> None:
        self._database = database
        self._ids = ids

    async def put(self, tenant: Tenant) -> None:
        terms = {
            "tenant_id": tenant.tenant_id,
            "terms": Jsonb(tenant.model_dump(mode="json", exclude=set(_BESIDE))),
            "retention": Jsonb(tenant.retention.model_dump(mode="json", exclude_none=True)),
            "legal_hold": tenant.legal_hold,
            "budget_id": self._ids.new(),
        }
        async with self._database.tenant(tenant.tenant_id) as conn:
            row = await (await conn.execute(_SQL["put_tenant"], terms)).fetchone()
            assert row is not None, "an upsert returns its row"
            budget = {"budget_id": row["budget_id"], "tenant_id": tenant.tenant_id}
            await conn.execute(_SQL["put_tenant_budget"], budget | limit_columns(tenant.budget or _UNLIMITED))

    async def get(self, tenant_id: TenantId) -> Tenant:
        async with self._database.tenant(tenant_id) as conn:
            row = await (await conn.execute(_SQL["get_tenant"], {"tenant_id": tenant_id})).fetchone()
        if row is None:
            raise unknown_tenant(tenant_id)
        return Tenant.model_validate(row["terms"] | {name: row[name] for name in _BESIDE})

    async def names(self, *, principal: Principal) -> Sequence[TenantId]:
        seen = None if principal.tenants is None else list(principal.tenants)
        async with self._database.engine() as conn:
            found = await conn.execute(_SQL["tenant_names"], {"tenants": seen})
            return [TenantId(row["tenant_id"]) for row in await found.fetchall()]


def unknown_tenant(tenant_id: TenantId) -> NotFound:
    """The error for a tenant that the configuration does not name."""
    return NotFound(f"there is no tenant {tenant_id!r}; name it in the configuration", tenant_id=tenant_id)
