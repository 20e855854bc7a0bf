"""A scope for tests of what stands below a node: a real run of a real store, claimed, at a fixed spot."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

from holdfast.contracts.calls import CallSite
from holdfast.contracts.deadline import Clock, Deadline
from holdfast.contracts.errors import ConfigurationError
from holdfast.contracts.ids import BudgetId, RunId, TenantId
from holdfast.contracts.limits import Limits
from holdfast.contracts.models import ModelDoor, ModelProvider, ModelRequest, ModelResponse
from holdfast.contracts.ports import Store
from holdfast.contracts.runs import GraphVersion, Owner, Run, RunClaim, RunIdentity, RunRequest
from holdfast.contracts.scope import Scope
from holdfast.contracts.tenancy import Tenant, TenantContext
from holdfast.contracts.verdicts import Autonomy
from holdfast.runtime.entropy import SystemIds


class NoModels:
    """The model door of a scope that is not meant to call models."""

    async def call(
        self, request: ModelRequest, *, scope: Scope, provider: ModelProvider | None = None
    ) -> ModelResponse:
        """Raise `ConfigurationError`."""
        raise ConfigurationError("this scope has no models; give scope_for(..., models=gateway)")


async def scope_for(
    store: Store,
    *,
    clock: Clock,
    models: ModelDoor | None = None,
    limits: Limits | None = None,
    tenant: TenantContext | None = None,
    terms: Tenant | None = None,
    autonomy: Autonomy = Autonomy.SUPERVISED,
    default_model: str | None = None,
    agent_name: str = "agent",
    node: str = "work",
    thread_key: str | None = None,
    still_ours: Callable[[], bool] = lambda: True,
) -> Scope:
    """The scope of the first node of a new run, which is admitted and claimed in `store`.

    `terms` are the tenant's (default: none but its name); `limits` the run's (default: `Limits()`).
    """
    tenant = tenant or TenantContext(tenant_id=TenantId("acme"), user_id="dana", policy_version="test")
    limits = limits or Limits()
    await store.tenants.put(terms or Tenant(tenant_id=tenant.tenant_id))
    claim = await _claimed(store, tenant, limits, thread_key)
    site = site_of(claim.run, node=node)
    return Scope(
        run=_identity(claim.run),
        owner=claim.owner,
        tenant=tenant,
        graph_name=claim.run.graph_name,
        node=node,
        agent_name=agent_name,
        deadline=Deadline(clock.monotonic() + _seconds_left(claim.run), clock),
        limits=limits,
        budgets=(BudgetId(claim.run_id), await store.ledger.tenant_budget(tenant.tenant_id)),
        autonomy=autonomy,
        models=models or NoModels(),
        default_model=default_model,
        locate=lambda: site,
        still_ours=still_ours,
    )


def rerun(scope: Scope, *, owner: Owner | None = None) -> Scope:
    """The scope as its node gets it when it is run again: the same spot and run, its calls counted from the first.

    `owner` is given when another worker has claimed the run meanwhile.
    """
    return replace(
        scope,
        owner=owner or scope.owner,
        occurrences=Counter(),
        calls_before={},
        approvals_before={},
        identified=defaultdict(set),
        closed=False,
    )


def site_of(run: Run, *, node: str = "work", task_id: str = "task-1") -> CallSite:
    """A fixed spot in the graph of `run`."""
    return CallSite(thread_id=run.thread_id, checkpoint_ns=f"{node}:{task_id}", task_id=task_id, node=node)


async def _claimed(store: Store, tenant: TenantContext, limits: Limits, thread_key: str | None) -> RunClaim:
    run_id = RunId(SystemIds().new())
    graph = f"tested-{run_id}"  # a graph of its own, so that the claim finds this run and no other
    await store.runs.admit(
        RunRequest(
            run_id=run_id,
            thread_key=thread_key or f"thread-{run_id}",
            graph_name=graph,
            graph_version="1",
            tenant=tenant,
            input=b"null",
            input_type="json",
            context=None,
            limits=limits,
        )
    )
    claims = await store.leases.claim(
        "worker-1", tenants=[tenant.tenant_id], graphs={GraphVersion(graph, "1"): "1"}, slots=1, ttl_seconds=3600
    )
    return claims[0]


def _identity(run: Run) -> RunIdentity:
    remaining = run.remaining_seconds
    return RunIdentity(
        run_id=run.run_id,
        thread_id=run.thread_id,
        tenant_id=run.tenant.tenant_id,
        deadline_ms=None if remaining is None else int(remaining * 1000),
        policy_version=run.tenant.policy_version,
    )


def _seconds_left(run: Run) -> float:
    return math.inf if run.remaining_seconds is None else run.remaining_seconds
