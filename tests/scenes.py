"""Short ways to set a scene in a store: tenants, runs that are held, intents and questions."""

from dataclasses import dataclass

from uuid_utils import uuid7

from holdfast.contracts.approvals import ApprovalKind, ApprovalRequest, Ruling
from holdfast.contracts.calls import CallIdentity, CallIntent, CallOutcome, CallSite, OutcomeStatus
from holdfast.contracts.canonical import digest
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.limits import Limits, Usage
from holdfast.contracts.ports import Store
from holdfast.contracts.runs import GraphVersion, Owner, RunRequest
from holdfast.contracts.tenancy import Principal, Tenant, TenantContext
from holdfast.contracts.tools import Effect

DANA = Principal(user_id="dana", tenants=None, roles=("approver",))
STRANGER = Principal(user_id="mallory", tenants=("other",), roles=("approver",))
UNLIMITED = Limits(**dict.fromkeys(Limits.model_fields))
ONE_TOOL_CALL = Usage(tool_calls=1)


def new_id() -> str:
    return str(uuid7())


def event(kind: EventKind, **facts) -> EventDraft:
    return EventDraft(kind=kind, **facts)


INTENDED = event(EventKind.TOOL_INTENDED)
RETURNED = event(EventKind.TOOL_RETURNED)
FAILED = event(EventKind.TOOL_FAILED)
RETRIED = event(EventKind.TOOL_RETRIED)
LOST = event(EventKind.CALL_UNKNOWN)


def intent(owner: Owner, name: str = "issue_refund", *, occurrence: int = 0, args: dict | None = None, **changes):
    """An intent of a task of `owner`'s run, paid by the run alone unless `budgets` says otherwise."""
    request = args or {"order_id": "A-1", "amount_usd": "12.00"}
    site = CallSite(thread_id=owner.thread_id, checkpoint_ns="", task_id=f"task-{owner.run_id}", node="refund")
    terms = {
        "agent_name": "clerk",
        "request": request,
        "effect": Effect.EXTERNAL,
        "idempotent": False,
        "reservation": ONE_TOOL_CALL,
        "budgets": (owner.run_id,),
        "timeout_seconds": 30.0,
        "policy_version": "policies-1",
    }
    identity = CallIdentity(site=site, kind="tool", name=name, request_digest=digest(request), occurrence=occurrence)
    return CallIntent(call_id=new_id(), identity=identity, **(terms | changes))


def outcome(call_id: str, status: OutcomeStatus = OutcomeStatus.RETURNED, **changes) -> CallOutcome:
    return CallOutcome(call_id=call_id, status=status, **({"usage": ONE_TOOL_CALL, "latency_ms": 7} | changes))


def question(call=None, **changes) -> ApprovalRequest:
    """A question for a person, about `call` (an intent) where one is given."""
    facts = {
        "kind": ApprovalKind.TOOL,
        "interrupt_id": new_id(),
        "node": "refund",
        "task_id": "task-1",
        "payload": {"action_requests": [{"name": "issue_refund", "args": {}}]},
        "tool_name": "issue_refund",
        "identity_key": None if call is None else call.identity.key,
    }
    return ApprovalRequest(**(facts | changes))


@dataclass
class Scene:
    """A store with people and runs in it."""

    store: Store
    graph: str = "desk"

    async def tenant(self, name: str = "acme", **terms) -> None:
        await self.store.tenants.put(Tenant(tenant_id=name, **terms))

    def request(self, tenant: str = "acme", thread: str | None = None, **changes) -> RunRequest:
        facts = {
            "run_id": new_id(),
            "thread_key": thread or f"thread-{new_id()}",
            "graph_name": self.graph,
            "graph_version": "1",
            "tenant": TenantContext(tenant_id=tenant, user_id="dana", roles=("clerk",), policy_version="policies-1"),
            "input": b'{"email": "where is my money?"}',
            "input_type": "json",
            "context": {"tone": "kind"},
            "limits": Limits(),
        }
        return RunRequest(**(facts | changes))

    async def claim(self, worker: str = "worker-1", *, slots: int = 10, ttl: float = 3600, tenants=None):
        return await self.store.leases.claim(
            worker, tenants=tenants, graphs={GraphVersion(self.graph, "1"): "1"}, slots=slots, ttl_seconds=ttl
        )

    async def renew(self, worker: str, owners, *, ttl_seconds: float):
        """One beat of a heartbeat of its own."""
        heartbeat = self.store.heartbeat(within_seconds=30)
        try:
            return await heartbeat.renew(worker, owners, ttl_seconds=ttl_seconds)
        finally:
            await heartbeat.close()

    async def running(self, tenant: str = "acme", *, ttl: float = 3600, **changes) -> Owner:
        """The owner of a new run, alone in the queue, which is claimed."""
        await self.tenant(tenant)
        run = await self.store.runs.admit(self.request(tenant, **changes))
        [claim] = [claim for claim in await self.claim(ttl=ttl) if claim.run_id == run.run_id]
        return claim.owner

    async def asked(self, owner: Owner, call=None, **changes):
        """An approval that `owner`'s run waits for."""
        return await self.store.approvals.ask(owner, question(call, **changes), event=event(EventKind.APPROVAL_ASKED))

    async def decide(self, approval, ruling: str = "approve", *, by: Principal = DANA, granted: str | None = None):
        return await self.store.approvals.decide(
            by,
            approval.tenant_id,
            approval.id,
            Ruling(type=ruling),
            decision={"type": ruling},
            granted_digest=granted,
            event=event(EventKind.APPROVAL_DECIDED),
        )

    async def rest(self, owner: Owner):
        return await self.store.runs.rest(owner, next_action="decide", event=event(EventKind.RUN_INTERRUPTED))

    async def kinds(self, owner: Owner) -> list[str]:
        """The kinds of a run's events, in order."""
        return [e.kind.value for e in await self.store.events.read(owner.tenant_id, owner.run_id)]

    async def budget(self, owner: Owner, budget_id: str | None = None):
        return await self.store.ledger.state(owner.tenant_id, budget_id or owner.run_id)
