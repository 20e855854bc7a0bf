"""The ledger on Postgres: reserve, settle, and the budgets' state.

A budget's cost is kept in whole micro-dollars. A call whose price is unknown adds nothing to it and is counted in
`spent_unpriced`; as long as there is one, what was spent is unknown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.checkpoints.database import Connection, Database
from holdfast.checkpoints.events import write_events_of
from holdfast.checkpoints.queries import load_queries
from holdfast.contracts.errors import InvariantViolated, NotFound
from holdfast.contracts.events import EventDraft
from holdfast.contracts.ids import BudgetId, TenantId, uuid_text
from holdfast.contracts.limits import BudgetState, Limits, Usage
from holdfast.contracts.money import to_dollars
from holdfast.contracts.ports import Ids
from holdfast.contracts.runs import Owner
from holdfast.policies.refusal import refusal

_SQL = load_queries(__name__, "ledger.sql")


class PostgresLedger:
    """`contracts.ports.Ledger` on Postgres."""

    def __init__(self, database: Database, ids: Ids) -> None:
        self._database = database
        self._ids = ids

    async def open_share(
        self, owner: Owner, *, parent: BudgetId, share_key: str, limits: Limits, event: EventDraft
    ) -> BudgetId:
        share = {
            "budget_id": self._ids.new(),
            "tenant_id": owner.tenant_id,
            "thread_id": owner.thread_id,
            "run_id": owner.run_id,
            "parent": uuid_text(parent, what="budget"),
            "share_key": share_key,
            **limit_columns(limits),
        }
        async with self._database.owned(owner) as conn:
            opened = await (await conn.execute(_SQL["open_share"], share)).fetchone()
            if opened is None:
                return await self._opened_before(conn, share)
            await write_events_of(conn, owner, [event])
            return BudgetId(opened["budget_id"])

    async def state(self, tenant_id: TenantId, budget_id: BudgetId) -> BudgetState:
        wanted = {"tenant_id": tenant_id, "budget_id": uuid_text(budget_id, what="budget")}
        async with self._database.tenant(tenant_id) as conn:
            row = await (await conn.execute(_SQL["get_budget"], wanted)).fetchone()
        if row is None:
            raise _no_budget(tenant_id, budget_id)
        spent = _spent(row)
        unknown = {"cost_usd": None} if row["spent_unpriced"] else {}
        return BudgetState(limits=_limits(row), spent=spent.model_copy(update=unknown), reserved=_reserved(row))

    async def tenant_budget(self, tenant_id: TenantId) -> BudgetId:
        async with self._database.tenant(tenant_id) as conn:
            row = await (await conn.execute(_SQL["tenant_budget"], {"tenant_id": tenant_id})).fetchone()
        if row is None:
            raise NotFound(f"there is no tenant {tenant_id!r}; name it in the configuration", tenant_id=tenant_id)
        return BudgetId(row["budget_id"])

    async def _opened_before(self, conn: Connection, share: Mapping[str, Any]) -> BudgetId:
        found = await (await conn.execute(_SQL["find_share"], share)).fetchone()
        if found is None:
            raise _no_budget(share["tenant_id"], share["parent"])
        return BudgetId(found["budget_id"])


async def reserve(conn: Connection, tenant_id: TenantId, path: Sequence[BudgetId], wanted: Usage) -> None:
    """Reserve `wanted` on every budget of the path in the caller's transaction, before its events are written.

    Raises `BudgetExceeded`, and then none of them is touched, and `NotFound` for a budget that the tenant has not.
    """
    asked = {"tenant_id": tenant_id, "budgets": list(path), **_columns(wanted)}
    rows = await (await conn.execute(_SQL["reserve"], asked)).fetchall()
    missing = set(path) - {str(row["budget_id"]) for row in rows}
    for budget_id in missing:
        raise _no_budget(tenant_id, budget_id)
    if rows and not rows[0]["was_reserved"]:
        raise _refused(rows, wanted)


async def settle(
    conn: Connection, tenant_id: TenantId, path: Sequence[BudgetId], *, reserved: Usage, used: Usage
) -> None:
    """Release what a call reserved and count what it used, on every budget of the path, in the caller's transaction."""
    columns = {f"reserved_{name}": amount for name, amount in _columns(reserved).items()}
    columns |= {f"used_{name}": amount for name, amount in _columns(used).items()}
    settled = await conn.execute(_SQL["settle"], {"tenant_id": tenant_id, "budgets": list(path), **columns})
    if settled.rowcount != len(path):
        raise InvariantViolated(f"a budget that a call reserved on is gone; it is one of {', '.join(path)}")


def usage_to_json(usage: Usage) -> dict[str, int | None]:
    """`usage` as a column of the journal keeps it: like the ledger's columns, unknown cost being null."""
    return _columns(usage)


def usage_from_json(stored: Mapping[str, int | None]) -> Usage:
    """The usage that a column of the journal holds."""
    return _usage(stored, "")


def limit_columns(limits: Limits) -> dict[str, int | None]:
    """The limits that a budget's row holds. The deadline is the run's and not among them."""
    return {
        "max_model_calls": limits.max_model_calls,
        "max_tool_calls": limits.max_tool_calls,
        "max_tokens": limits.max_tokens,
        "max_cost": limits.max_cost_microusd,
        "max_steps": limits.max_steps,
    }


def _columns(usage: Usage) -> dict[str, int | None]:
    return {
        "model_calls": usage.model_calls,
        "tool_calls": usage.tool_calls,
        "tokens": usage.tokens_used,
        "cost": usage.cost_microusd,
    }


def _usage(row: Mapping[str, Any], prefix: str) -> Usage:
    return Usage(
        model_calls=row[f"{prefix}model_calls"],
        tool_calls=row[f"{prefix}tool_calls"],
        tokens_used=row[f"{prefix}tokens"],
        cost_usd=to_dollars(row[f"{prefix}cost"]),
        steps=row.get(f"{prefix}steps", 0),
    )


def _spent(row: Mapping[str, Any]) -> Usage:
    return _usage(row, "spent_")


def _reserved(row: Mapping[str, Any]) -> Usage:
    return _usage(row, "reserved_")


def _limits(row: Mapping[str, Any]) -> Limits:
    return Limits(
        deadline_seconds=None,
        max_model_calls=row["max_model_calls"],
        max_tool_calls=row["max_tool_calls"],
        max_tokens=row["max_tokens"],
        max_cost_usd=to_dollars(row["max_cost"]),
        max_steps=row["max_steps"],
    )


def _refused(rows: Sequence[Mapping[str, Any]], wanted: Usage) -> Exception:
    for row in rows:
        refused = refusal(
            str(row["budget_id"]),
            row["kind"],
            limits=_limits(row),
            spent=_spent(row),
            reserved=_reserved(row),
            requested=wanted,
        )
        if refused is not None:
            return refused
    return InvariantViolated("the database refused a reservation for which there is room")


def _no_budget(tenant_id: TenantId, budget_id: str) -> NotFound:
    return NotFound(f"tenant {tenant_id!r} has no budget {budget_id}", budget_id=budget_id)
