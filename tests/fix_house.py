"""The Postgres store with two tenants, and short ways to bring a run into a situation."""

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

import psycopg
import pytest
from fix_database import DatabaseUrls
from psycopg.rows import dict_row

from holdfast.checkpoints.approvals import PostgresApprovals
from holdfast.checkpoints.database import Database
from holdfast.checkpoints.events import PostgresEvents
from holdfast.checkpoints.heartbeat import PostgresHeartbeat
from holdfast.checkpoints.leases import PostgresLeases
from holdfast.checkpoints.runs import PostgresRuns
from holdfast.checkpoints.tenants import PostgresTenants
from holdfast.contracts.approvals import Approval, ApprovalKind, ApprovalRequest, Ruling
from holdfast.contracts.errors import RuntimeErrorRecord
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.limits import Limits
from holdfast.contracts.ports import Renewal
from holdfast.contracts.runs import GraphVersion, Owner, Run, RunClaim, RunRequest, RunStatus
from holdfast.contracts.tenancy import Principal, Tenant, TenantContext
from holdfast.runtime.entropy import SystemIds

DESK = GraphVersion("desk", "1")
SERVED = {DESK: "1"}
"""What a worker of the desk serves, and the version whose code does."""
DANA = Principal(user_id="dana", tenants=(TenantId("acme"),))
ENDED = {
    RunStatus.COMPLETED: EventKind.RUN_COMPLETED,
    RunStatus.FAILED: EventKind.RUN_FAILED,
    RunStatus.CANCELLED: EventKind.RUN_CANCELLED,
}


def event(kind: EventKind, **facts: Any) -> EventDraft:
    return EventDraft(kind=kind, payload=facts)


class House:
    """The ports, and hands to set the scene with. What is under test is called by its own name."""

    def __init__(self, database: Database, admin_url: str) -> None:
        ids = SystemIds()
        self.ids = ids
        self.database = database
        self.runs = PostgresRuns(database, ids)
        self.leases = PostgresLeases(database)
        self.approvals = PostgresApprovals(database, ids)
        self.events = PostgresEvents(database)
        self.tenants = PostgresTenants(database, ids)
        self._admin_url = admin_url

    def request(self, *, run_id: str | None = None, tenant: str = "acme", **changes: Any) -> RunRequest:
        number = self.ids.new()
        standard: dict[str, Any] = {
            "run_id": RunId(run_id or number),
            "thread_key": number,
            "graph_name": "desk",
            "graph_version": "1",
            "tenant": TenantContext(tenant_id=TenantId(tenant), user_id="dana", roles=("clerk",), policy_version="p1"),
            "input": b"{}",
            "input_type": "json",
            "context": None,
            "limits": Limits(),
        }
        return RunRequest(**standard | changes)

    async def claim_one(self, worker_id: str = "first", *, ttl_seconds: float = 30.0) -> RunClaim:
        claims = await self.leases.claim(worker_id, tenants=None, graphs=SERVED, slots=1, ttl_seconds=ttl_seconds)
        assert len(claims) == 1
        return claims[0]

    async def renew(self, worker_id: str, owners: Sequence[Owner], *, ttl_seconds: float) -> Mapping[RunId, Renewal]:
        """One beat of a heartbeat of its own."""
        heartbeat = PostgresHeartbeat(self.database.line_apart("heartbeat", within_seconds=30))
        try:
            return await heartbeat.renew(worker_id, owners, ttl_seconds=ttl_seconds)
        finally:
            await heartbeat.close()

    @staticmethod
    def attached(run: Run) -> Owner:
        return Owner(
            tenant_id=run.tenant.tenant_id,
            run_id=run.run_id,
            thread_id=run.thread_id,
            epoch=run.epoch,
            attempt=run.attempt,
            worker_id="studio",
            attached=True,
        )

    async def ask(self, claim: RunClaim, *, interrupt_id: str = "interrupt", **changes: Any) -> Approval:
        request = ApprovalRequest(
            **{
                "kind": ApprovalKind.TOOL,
                "interrupt_id": interrupt_id,
                "node": "act",
                "task_id": "task",
                "payload": {"action_requests": [{"name": "refund", "args": {"amount": "12.00"}}]},
                "tool_name": "refund",
                "args": {"amount": "12.00"},
                "args_digest": "d1",
                "identity_key": "key",
            }
            | changes
        )
        return await self.approvals.ask(claim.owner, request, event=event(EventKind.APPROVAL_ASKED))

    async def decide(self, approval: Approval, *, by: Principal = DANA, ruling: Ruling | None = None) -> Approval:
        ruling = ruling or Ruling(type="approve")
        return await self.approvals.decide(
            by,
            approval.tenant_id,
            approval.id,
            ruling,
            decision={"type": ruling.type},
            granted_digest=approval.args_digest,
            event=event(EventKind.APPROVAL_DECIDED, approval_id=approval.id),
        )

    async def end(
        self,
        claim: RunClaim,
        *,
        status: RunStatus = RunStatus.COMPLETED,
        output: Any = None,
        cause: RuntimeErrorRecord | None = None,
    ) -> None:
        await self.runs.finish(claim.owner, status, output=output, cause=cause, event=event(ENDED[status]))

    async def kinds(self, run_id: RunId, tenant: str = "acme") -> list[str]:
        return [str(one.kind) for one in await self.events.read(TenantId(tenant), run_id)]

    async def row(self, query: LiteralString, *values: object) -> Mapping[str, Any]:
        async with await psycopg.AsyncConnection.connect(self._admin_url, row_factory=dict_row) as conn:
            row = await (await conn.execute(query, values)).fetchone()
        assert row is not None
        return row

    async def scalar(self, query: LiteralString, *values: object) -> Any:
        return next(iter((await self.row(query, *values)).values()))

    async def shift(self, statement: LiteralString, *values: object) -> None:
        """Change the tables as nobody else may, mostly to let time pass."""
        async with await psycopg.AsyncConnection.connect(self._admin_url, autocommit=True) as conn:
            await conn.execute(statement, values)


@pytest.fixture
async def house(database: Database, database_urls: DatabaseUrls) -> House:
    """The store with the tenants acme and bolt."""
    house = House(database, database_urls.admin)
    for name in ("acme", "bolt"):
        await house.tenants.put(Tenant(tenant_id=TenantId(name)))
    return house
